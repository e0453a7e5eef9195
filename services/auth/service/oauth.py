"""Signing in with identity providers, and the identities linked to an account."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn
from uuid import UUID

from chassis.callers import Caller
from chassis.errors import FieldViolation
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.refusals import InvalidRequest
from services.auth.domain.admin import UserState, state_of
from services.auth.domain.emails import Change
from services.auth.domain.oauth import (
    FLOW_LIFE,
    Answer,
    Flow,
    Identity,
    Proof,
    Provider,
    Purpose,
    issuer_fits,
    new_flow,
    secrets_of,
)
from services.auth.domain.sessions import Means, digest
from services.auth.domain.users import User
from services.auth.errors import (
    AccountExistsLinkRequired,
    EmailAlreadyTaken,
    EmailNotVerifiedByProvider,
    IdentityAlreadyLinked,
    LastSignInMethod,
    OAuthDenied,
    OAuthProviderUnavailable,
    OAuthStateInvalid,
    UserNotActive,
    UserNotFound,
)
from services.auth.providers import Providers
from services.auth.service.accounts import AccountService
from services.auth.service.attempts import count_call
from services.auth.service.mail import Mail, enqueue, tell_of_change
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService, Tokens
from services.auth.service.step_up import require_fresh, require_living, require_verified
from services.auth.store import emails, oauth, users

# Once a flow is used nobody can send its call again: better to wait longer than usual for a row.
PATIENCE_MS = 8_000
# Words of RFC 6749 section 4.1.2.1 that say the provider is ill.
_ILL = {"server_error", "temporarily_unavailable"}


@dataclass(frozen=True, slots=True)
class Started:
    """A flow that waits for the provider's answer."""

    authorization_url: str
    flow: str
    expires_at: datetime


class OAuthService:
    """Sign-ins by identity providers; a provider is never called inside a transaction."""

    def __init__(
        self,
        room: Room,
        accounts: AccountService,
        sessions: SessionService,
        providers: Providers,
    ) -> None:
        self._room = room
        self._accounts = accounts
        self._sessions = sessions
        self._providers = providers
        self._key = room.derive("oauth")

    async def start_sign_in(
        self, *, provider: str, redirect_uri: str, address: str | None = None
    ) -> Started:
        """
        Starts a flow that anybody who has its secret can finish.

        TooManyAttempts past any person's number: each costs a row.
        """
        await count_call(self._room, "oauth-start", address)
        return await self._start(provider, redirect_uri, Purpose.SIGN_IN, None)

    async def finish_sign_in(
        self, *, flow: str, answer: Answer, means: Means, invite_token: str = ""
    ) -> tuple[Tokens, User, bool]:
        """
        Opens a session for whoever the provider vouches for.

        Returns also whether the account is new. An account is found by its identity alone, never by
        an address: whoever gets hold of one at some provider must not get the account.
        TooManyAttempts past any person's number: each may cost a call to the provider.
        """
        await count_call(self._room, "oauth-finish", means.address)
        proof = await self._prove(flow, answer, Purpose.SIGN_IN, None)
        now = self._room.clock.now()
        opened = await self._sign_in_known(proof, means, now)
        if opened is not None:
            return *opened, False
        if not proof.usable_email:
            raise EmailNotVerifiedByProvider
        try:
            opened = await self._register(proof, means, now, invite_token)
        except (EmailAlreadyTaken, IdentityAlreadyLinked):
            # The same person, signing in twice at once, may have made the account meanwhile.
            opened = await self._sign_in_known(proof, means, now)
            if opened is None:
                raise AccountExistsLinkRequired from None
            return *opened, False
        self._room.wake_relay()
        return *opened, True

    async def start_linking(self, caller: Caller, *, provider: str, redirect_uri: str) -> Started:
        """
        Starts a flow that the caller alone can finish; StepUpRequired without a fresh proof.

        EmailNotVerified while the account's address is not.
        """
        user = await self._fresh(caller)
        return await self._start(provider, redirect_uri, Purpose.LINK, user.id)

    async def finish_linking(self, caller: Caller, *, flow: str, answer: Answer) -> Identity:
        """
        Links what the provider vouches for; IdentityAlreadyLinked if it is another account's.

        UserNotActive or SessionEnded for who was put out while the provider was asked.
        """
        asked_at = self._room.clock.now()
        user = await self._fresh(caller)
        proof = await self._prove(flow, answer, Purpose.LINK, user.id)
        now = self._room.clock.now()
        identity_id = uuid7(now)
        async with self._room.database.transaction(lock_ms=PATIENCE_MS) as conn:
            user = await self._lock(conn, user.id)
            state = state_of(user, now)
            if state in (UserState.BANNED, UserState.ERASED):
                raise UserNotActive(metadata={"state": state})
            await require_living(conn, caller, self._room.policy, now)
            # As of the call: how long the provider took makes no proof older.
            require_fresh(caller, user, asked_at)
            require_verified(user)
            identity = await oauth.insert_identity(conn, identity_id, user.id, proof, now)
            await oauth.name_first_identity(conn, user.id)
            if identity.id == identity_id:
                await enqueue(
                    conn,
                    Mail("oauth_linked", user.email, {"at": now.isoformat()}, about=user.id),
                    now,
                )
        self._room.wake_relay()
        return identity

    async def list_identities(
        self, caller: Caller, *, before: UUID | None, limit: int
    ) -> tuple[Sequence[Identity], UUID | None]:
        """Returns a page of the caller's, newest first, and the id after which the next starts."""
        user_id = _user_id(caller)
        async with self._room.database.connection() as conn:
            found = await oauth.list_identities(conn, user_id, before=before, limit=limit + 1)
        more = len(found) > limit
        return found[:limit], found[limit - 1].id if more else None

    async def unlink_identity(self, caller: Caller, identity_id: UUID) -> None:
        """Takes an identity off the caller; LastSignInMethod if nothing would be left."""
        user = await self._fresh(caller)
        async with self._room.database.transaction(lock_ms=PATIENCE_MS) as conn:
            # Two that unlink at once must each see what the other left.
            user = await self._lock(conn, user.id)
            if not await oauth.delete_identity(conn, user.id, identity_id):
                return
            if not await oauth.can_sign_in(conn, user.id):
                raise LastSignInMethod
            await oauth.name_first_identity(conn, user.id)
            now = self._room.clock.now()
            await tell_of_change(conn, user, Change.IDENTITY_UNLINKED, now)
        self._room.wake_relay()

    async def _start(
        self, name: str, redirect_uri: str, purpose: Purpose, user_id: UUID | None
    ) -> Started:
        provider = self._providers.get(name)
        if redirect_uri not in provider.provider.redirect_uris:
            _refuse_redirect(provider.provider)
        secret, now = new_flow(), self._room.clock.now()
        secrets = secrets_of(self._key, secret)
        url = await provider.authorization_url(redirect_uri, secrets)
        flow = Flow(uuid7(now), name, purpose, user_id, redirect_uri, now, now + FLOW_LIFE)
        async with self._room.database.transaction() as conn:
            if user_id is not None:
                require_verified(await self._lock(conn, user_id))
            await oauth.insert_flow(
                conn, flow, flow_digest=digest(secret), state_digest=digest(secrets.state)
            )
        return Started(url, secret, flow.expires_at)

    async def _prove(
        self, secret: str, answer: Answer, purpose: Purpose, user_id: UUID | None
    ) -> Proof:
        """Claims a flow, and only then exchanges its code: once, however often it is sent."""
        async with self._room.database.connection() as conn:
            name = await oauth.provider_of_flow(conn, digest(secret))
        if name is None:
            raise OAuthStateInvalid
        provider = self._providers.get(name)
        # Asked before the claim: a provider that is down must not use the flow up.
        announced = await provider.announces_issuer()
        async with self._room.database.transaction(lock_ms=PATIENCE_MS) as conn:
            flow = await oauth.claim_flow(
                conn,
                flow_digest=digest(secret),
                state_digest=digest(answer.state),
                purpose=purpose,
                user_id=user_id,
                now=self._room.clock.now(),
            )
        if flow is None or not issuer_fits(answer.iss, provider.provider, announced=announced):
            raise OAuthStateInvalid
        if answer.error in _ILL:
            raise OAuthProviderUnavailable
        if answer.error or not answer.code:
            raise OAuthDenied(metadata={"error": answer.error})
        return await provider.prove(answer.code, flow.redirect_uri, secrets_of(self._key, secret))

    async def _sign_in_known(
        self, proof: Proof, means: Means, now: datetime
    ) -> tuple[Tokens, User] | None:
        async with self._room.database.transaction(lock_ms=PATIENCE_MS) as conn:
            user_id = await oauth.owner_of_identity(conn, proof)
            # The account first, then the identity, as unlinking locks them.
            if user_id is None or await users.lock_user(conn, user_id) is None:
                return None
            if not await oauth.use_identity(conn, user_id, proof, now):
                return None
            return await self._sessions.sign_in(conn, user_id, means, now)

    async def _register(
        self, proof: Proof, means: Means, now: datetime, invite_token: str
    ) -> tuple[Tokens, User]:
        async with self._room.database.transaction(lock_ms=PATIENCE_MS) as conn:
            user = await self._accounts.create(
                conn,
                email=proof.usable_email,
                password_hash=None,
                now=now,
                invite_token=invite_token,
            )
            await oauth.insert_identity(conn, uuid7(now), user.id, proof, now)
            await oauth.name_first_identity(conn, user.id)
            await emails.verify_address(conn, user.id, now)
            return await self._sessions.sign_in(conn, user.id, means, now)

    async def _fresh(self, caller: Caller) -> User:
        """Returns the caller's account; StepUpRequired unless it was proved lately."""
        user = await self._accounts.get_user(_user_id(caller))
        require_fresh(caller, user, self._room.clock.now())
        return user

    async def _lock(self, conn: Connection, user_id: UUID) -> User:
        user = await users.lock_user(conn, user_id)
        if user is None:
            raise UserNotFound
        return user


def _user_id(caller: Caller) -> UUID:
    if caller.user_id is None:
        raise UserNotFound
    return caller.user_id


def _refuse_redirect(provider: Provider) -> NoReturn:
    """Refuses an address that is not configured; which ones are is nobody's business."""
    rule, text = "redirect_uri.configured", f"is not configured for {provider.name}"
    raise InvalidRequest(violations=(FieldViolation("redirect_uri", rule, text),))
