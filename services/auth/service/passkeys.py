"""Passkeys (WebAuthn Level 3): registering, removing and being shown one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import structlog
import webauthn
from webauthn.helpers import (
    parse_authentication_credential_json,
    parse_client_data_json,
    parse_registration_credential_json,
)
from webauthn.helpers.structs import (
    AuthenticationCredential,
    AuthenticatorSelectionCriteria,
    CredentialDeviceType,
    PublicKeyCredentialDescriptor,
    RegistrationCredential,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from chassis import idempotency
from chassis.callers import Caller
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.revocations import Revocations
from services.auth.domain.emails import Change
from services.auth.domain.mfa import CHALLENGE_LIFE, Purpose
from services.auth.domain.passkeys import MOST_PASSKEYS, Passkey, challenge_of, row_of
from services.auth.domain.sessions import Acr
from services.auth.domain.users import User
from services.auth.errors import (
    PasskeyCloned,
    PasskeyInvalid,
    PasskeyLimit,
    PasskeyNotFound,
    PasskeyRejected,
)
from services.auth.service.attempts import count_call
from services.auth.service.mfa import MfaService, own
from services.auth.service.room import KEYS, Room
from services.auth.service.step_up import require_fresh, require_verified
from services.auth.store import mfa, passkeys, users

_TIMEOUT_MS = int(CHALLENGE_LIFE.total_seconds() * 1000)
# A passkey stands for two factors only if it has verified its user.
_VERIFIED = UserVerificationRequirement.REQUIRED
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What a browser needs to show a passkey or make one."""

    options: str
    """JSON."""
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration answers; the first factor comes with recovery codes."""

    passkey_id: UUID
    codes: list[UUID]


class PasskeyService:
    """Passkeys."""

    def __init__(self, room: Room, factors: MfaService) -> None:
        self._room = room
        self._factors = factors
        self._party = room.relying_party
        self._key = room.derive("passkey-challenges")

    async def start_registration(self, caller: Caller) -> Ceremony:
        """
        Makes a challenge for a new passkey of the caller.

        EmailNotVerified while the account's address is not.
        """
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            require_fresh(caller, user, now)
            require_verified(user)
            known = await passkeys.list_credential_ids(conn, user.id)
            if len(known) >= MOST_PASSKEYS:
                raise PasskeyLimit
            challenge = await self._challenge(conn, Purpose.REGISTRATION, user.id, now)
        return Ceremony(self._creation(user, known, challenge), now + CHALLENGE_LIFE)

    async def finish_registration(
        self, caller: Caller, *, credential: str, name: str, key: Key | None
    ) -> tuple[UUID, Sequence[str]]:
        """
        Stores a passkey; returns its id and, with the first factor, recovery codes.

        PasskeyRejected whatever is wrong with it, PasskeyLimit past 20 of them.
        """
        now = self._room.clock.now()
        ended: list[UUID] = []
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            # A repeated call finds the factor on that it has itself switched on.
            require_fresh(replace(caller, acr=Acr.AAL2), user, now)

            async def effect() -> Registered:
                require_fresh(caller, user, now)
                require_verified(user)
                if len(await passkeys.list_credential_ids(conn, user.id)) >= MOST_PASSKEYS:
                    raise PasskeyLimit
                passkey = await self._made(conn, user, credential, now)
                await passkeys.insert_passkey(conn, passkey, name=name, now=now)
                added = await self._factors.added(conn, caller, user, passkey.amr, now)
                ended.extend(added.ended)
                return Registered(passkey.id, added.codes)

            made = await idempotency.once(conn, KEYS, key, Registered, effect, now=now)
        self._room.wake_relay()
        if ended:
            await self._room.announce(Revocations(ended, []))
        return made.passkey_id, self._factors.spell(made.codes)

    async def delete(self, caller: Caller, passkey_id: UUID, key: Key | None) -> None:
        """Removes a passkey of the caller; PasskeyNotFound if it has none of this id."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            require_fresh(caller, user, now)

            async def effect() -> bool:
                if not await passkeys.delete_passkey(conn, user.id, passkey_id):
                    raise PasskeyNotFound
                await self._factors.removed(conn, user, Change.PASSKEY_REMOVED, now)
                return True

            await idempotency.once(conn, KEYS, key, bool, effect, now=now)
        self._room.wake_relay()

    async def start_assertion(self, address: str | None = None) -> Ceremony:
        """Makes a challenge for whoever answers it; TooManyAttempts past any person's number."""
        await count_call(self._room, "assertion", address)
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            challenge = await self._challenge(conn, Purpose.ASSERTION, None, now)
        options = webauthn.generate_authentication_options(
            rp_id=self._party.id,
            challenge=challenge,
            timeout=_TIMEOUT_MS,
            user_verification=_VERIFIED,
        )
        return Ceremony(webauthn.options_to_json(options), now + CHALLENGE_LIFE)

    async def prove(
        self, conn: Connection, text: str, *, owner: UUID | None, now: datetime
    ) -> Passkey | Refusal:
        """
        Judges the answer to a challenge, which it uses up; locks the owner's account.

        A refusal is returned, not raised: that the challenge was used has to commit.
        """
        credential = _shown(text)
        challenge = _challenge_in(credential) if credential else b""
        row_id = row_of(self._key, challenge)
        if credential is None or row_id is None:
            return PasskeyInvalid()
        if not await mfa.take_challenge(conn, row_id, Purpose.ASSERTION, user_id=None, now=now):
            return PasskeyInvalid()
        passkey = await passkeys.find_passkey(conn, credential.raw_id)
        if passkey is None or owner not in (None, passkey.user_id):
            return PasskeyInvalid()
        # Only where the owner is known already may the authenticator leave it out.
        handle = credential.response.user_handle or (owner and owner.bytes)
        count = self._verified_count(passkey, credential, challenge)
        if count is None or handle != passkey.user_id.bytes:
            return PasskeyInvalid()
        await users.lock_user(conn, passkey.user_id)
        if not await passkeys.count_use(conn, passkey.id, count, now):
            _log.warning(
                "passkey counter went back",
                passkey_id=str(passkey.id),
                user_id=str(passkey.user_id),
                presented=count,
            )
            return PasskeyCloned()
        return passkey

    async def _challenge(
        self, conn: Connection, purpose: Purpose, user_id: UUID | None, now: datetime
    ) -> bytes:
        row_id = uuid7(now)
        expires_at = now + CHALLENGE_LIFE
        await mfa.insert_challenge(conn, row_id, purpose, user_id=user_id, expires_at=expires_at)
        return challenge_of(self._key, row_id)

    def _creation(self, user: User, known: Sequence[bytes], challenge: bytes) -> str:
        options = webauthn.generate_registration_options(
            rp_id=self._party.id,
            rp_name=self._party.name,
            user_id=user.id.bytes,
            user_name=user.email,
            challenge=challenge,
            timeout=_TIMEOUT_MS,
            authenticator_selection=AuthenticatorSelectionCriteria(
                # It must name its owner by itself: a sign-in names nobody.
                resident_key=ResidentKeyRequirement.REQUIRED,
                user_verification=_VERIFIED,
            ),
            exclude_credentials=[PublicKeyCredentialDescriptor(id=one) for one in known],
        )
        return webauthn.options_to_json(options)

    async def _made(self, conn: Connection, user: User, text: str, now: datetime) -> Passkey:
        credential = _new(text)
        challenge = _challenge_in(credential) if credential else b""
        row_id = row_of(self._key, challenge)
        if credential is None or row_id is None:
            raise PasskeyRejected
        if not await mfa.take_challenge(
            conn, row_id, Purpose.REGISTRATION, user_id=user.id, now=now
        ):
            raise PasskeyRejected
        try:
            made = webauthn.verify_registration_response(
                credential=credential,
                expected_challenge=challenge,
                expected_rp_id=self._party.id,
                expected_origin=list(self._party.origins),
                require_user_verification=True,
            )
        except Exception as error:  # whatever a stranger's bytes break in the parser
            raise PasskeyRejected from error
        return Passkey(
            id=uuid7(now),
            user_id=user.id,
            credential_id=made.credential_id,
            public_key=made.credential_public_key,
            sign_count=made.sign_count,
            synced=made.credential_device_type is CredentialDeviceType.MULTI_DEVICE,
        )

    def _verified_count(
        self, passkey: Passkey, credential: AuthenticationCredential, challenge: bytes
    ) -> int | None:
        """Returns the counter of a signature that is right, None for any other."""
        try:
            shown = webauthn.verify_authentication_response(
                credential=credential,
                expected_challenge=challenge,
                expected_rp_id=self._party.id,
                expected_origin=list(self._party.origins),
                credential_public_key=passkey.public_key,
                # The row's counter is compared where it is moved on, in one statement.
                credential_current_sign_count=0,
                require_user_verification=True,
            )
        except Exception:  # noqa: BLE001 - whatever a stranger's bytes break in the parser
            return None
        return shown.new_sign_count


def _shown(text: str) -> AuthenticationCredential | None:
    try:
        return parse_authentication_credential_json(text)
    except Exception:  # noqa: BLE001 - whatever a stranger's bytes break in the parser
        return None


def _new(text: str) -> RegistrationCredential | None:
    try:
        return parse_registration_credential_json(text)
    except Exception:  # noqa: BLE001 - whatever a stranger's bytes break in the parser
        return None


def _challenge_in(credential: AuthenticationCredential | RegistrationCredential) -> bytes:
    try:
        return parse_client_data_json(credential.response.client_data_json).challenge
    except Exception:  # noqa: BLE001 - whatever a stranger's bytes break in the parser
        return b""
