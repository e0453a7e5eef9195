"""Verifying, resetting, signing in and changing address by what a mail says."""

import contextlib
import hmac
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from chassis import idempotency
from chassis.callers import Caller
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.limits import Try
from chassis.postgres import Connection
from chassis.refusals import IdempotencyKeyReused, TooManyAttempts
from chassis.revocations import Revocations
from services.auth.domain import one_time
from services.auth.domain.devices import withdrawn
from services.auth.domain.emails import Change, MailedSecret, Proof, Purpose, mask
from services.auth.domain.mfa import HeldSignIn
from services.auth.domain.sessions import EndReason, Means, digest
from services.auth.domain.users import User, normalise_email
from services.auth.errors import MailSecretInvalid, MailTooSoon, MfaRequired, UserNotFound
from services.auth.service.attempts import Attempts, network
from services.auth.service.mail import Mail, enqueue, tell_of_change
from services.auth.service.passwords import require_acceptable
from services.auth.service.room import KEYS, Room
from services.auth.service.sessions import SessionService, Tokens
from services.auth.service.step_up import require_fresh
from services.auth.store import emails, sessions, users

TEMPLATES = {
    Purpose.VERIFY: "email_verification",
    Purpose.CHANGE: "email_change",
    Purpose.RESET: "password_reset",
    Purpose.SIGN_IN: "sign_in",
}
# Stands where a user would, so that an unknown address costs what a known one does.
NOBODY = UUID(int=0)


async def send_verification(conn: Connection, room: Room, user: User, now: datetime) -> datetime:
    """Mails a verification unless one was just sent; returns when the next may be asked for."""
    turn = await emails.take_turn(conn, room.pseudonym(user.email), Purpose.VERIFY, now)
    if turn.granted:
        await _send(conn, room, Purpose.VERIFY, user, to=user.email, now=now)
    return turn.next_at


async def _send(
    conn: Connection,
    room: Room,
    purpose: Purpose,
    user: User | None,
    *,
    to: str,
    now: datetime,
    session_id: UUID | None = None,
) -> None:
    """Makes a secret that replaces the older one, and mails it; to nobody at the same cost."""
    living = await users.lock_user(conn, user.id if user else NOBODY)
    if living is None or living.erased_at is not None:
        # Erased in this very moment: nothing may be written about it any more.
        user = None
    user_id = user.id if user else NOBODY
    await emails.supersede(conn, user_id, now, purpose)
    secret = MailedSecret(uuid7(now), user_id, to, session_id=session_id)
    written = digest(one_time.secret_of(room.derive(one_time.PURPOSE), secret.id))
    await emails.insert_secret(conn, purpose, secret, digest=written, now=now)
    if user is None:
        await emails.write_to_nobody(conn)
        return
    mail = Mail(TEMPLATES[purpose], to, {"at": now.isoformat()}, secret.id, about=user.id)
    await enqueue(conn, mail, now)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a sign-in came to, for the same call once more; neither if the proof was bad."""

    session_id: UUID | None = None
    held: HeldSignIn | None = None


def _nameless(held: HeldSignIn | None) -> HeldSignIn | None:
    """Returns what is kept of a held-back sign-in: people name devices after themselves."""
    return held and replace(held, device="")


class EmailService:
    """What is proved by reading a mailbox."""

    def __init__(self, room: Room, sessions: SessionService) -> None:
        self._room = room
        self._sessions = sessions
        self._attempts = Attempts(room)
        self._key = room.derive(one_time.PURPOSE)

    async def request_verification(self, user_id: UUID) -> datetime | None:
        """Returns when the next mail may be asked for, None if the address is verified."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            user = await users.get_user(conn, user_id)
            if user is None:
                raise UserNotFound
            if user.email_verified_at is not None:
                return None
            next_at = await send_verification(conn, self._room, user, now)
        self._room.wake_relay()
        return next_at

    async def verify(self, proof: Proof, *, address: str | None) -> None:
        """Verifies an address; MailSecretInvalid unless the proof is good, or was for this."""
        await self._check(proof, address)
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            proved = await self._prove(conn, Purpose.VERIFY, proof, now)
            if proved is not None:
                await emails.verify_address(conn, proved[1].id, now)
            good = proved is not None or await self._verified_before(conn, proof, now)
        await self._count(proof, address, good=good)
        # A wrong code's count must commit: it is refused only now.
        if not good:
            raise MailSecretInvalid

    async def request_reset(self, *, email: str, address: str | None) -> datetime:
        """Mails a reset link to whoever has the address; returns when to ask again."""
        return await self._request(Purpose.RESET, email, address)

    async def reset_password(
        self, *, secret: str, new_password: str, key: Key | None = None
    ) -> None:
        """
        Sets a password and ends every session; MailSecretInvalid unless the secret is good.

        PasswordTooWeak leaves the secret good for another password. The key again is
        answered as before.
        """
        room, now = self._room, self._room.clock.now()
        async with room.database.connection() as conn:
            found = await emails.find_secret(conn, Purpose.RESET, digest(secret), now)
        # Before the hash: whoever guesses at secrets must not keep the processes busy.
        # Used by this very call, perhaps: with its key that is found out below.
        if found is None or (found.used_at is not None and key is None):
            raise MailSecretInvalid
        require_acceptable(new_password, found.email, name="new_password")
        hashed = await room.passwords.hash(new_password)
        revoked = Revocations([], [])
        async with room.database.transaction() as conn:

            async def effect() -> bool:
                nonlocal revoked
                proved = await self._prove(conn, Purpose.RESET, Proof(secret), now)
                if proved is None:
                    raise MailSecretInvalid
                user = proved[1]
                await emails.verify_address(conn, user.id, now)
                revoked = await self._set_password(conn, user, hashed, now)
                values = {"at": now.isoformat()}
                changed = Mail("password_changed", user.email, values, about=user.id)
                await enqueue(conn, changed, now)
                return True

            await idempotency.once(conn, KEYS, key, bool, effect, now=now)
        room.wake_relay()
        await room.announce(revoked)

    async def request_sign_in(self, *, email: str, address: str | None) -> datetime:
        """Mails a link and a code to whoever has the address; returns when to ask again."""
        return await self._request(Purpose.SIGN_IN, email, address)

    async def sign_in(self, proof: Proof, means: Means, key: Key | None) -> tuple[Tokens, User]:
        """
        Opens a session; whatever is wrong with the proof, MailSecretInvalid says the same.

        MfaRequired holds it back for the second factor; the link or code is used up. The
        key again gets the same session, or the same challenge.
        """
        await self._check(proof, means.address)
        now = self._room.clock.now()
        opened: tuple[Tokens, User] | None = None
        held: MfaRequired | None = None
        revoked: Revocations | None = None
        async with (
            self._counting_reuse(proof, means.address),
            self._room.database.transaction() as conn,
        ):

            async def effect() -> _Answer:
                nonlocal opened, held, revoked
                proved = await self._prove(conn, Purpose.SIGN_IN, proof, now)
                if proved is None:
                    return _Answer()
                user = proved[1]
                if user.email_verified_at is None:
                    # Somebody who does not read the mailbox may have registered the address: their
                    # password and sessions go. Whatever else lets in needs a verified address.
                    revoked = await self._set_password(conn, user, None, now)
                    await emails.verify_address(conn, user.id, now)
                    await tell_of_change(conn, user, Change.UNPROVED_LOGIN_REMOVED, now)
                try:
                    opened = await self._sessions.sign_in(conn, user.id, means, now)
                except MfaRequired as refusal:
                    held = refusal
                    return _Answer(held=_nameless(self._sessions.held_by(refusal, now)))
                return _Answer(session_id=opened[0].session.id)

            before = await idempotency.once(conn, KEYS, key, _Answer, effect, now=now)
            if before.session_id and opened is None:
                opened = await self._sessions.opened_before(conn, before.session_id, now)
            if before.held and held is None:
                again = replace(before.held, device=means.device)
                held = await self._sessions.hold_back(conn, again)
        if revoked is not None:
            self._room.wake_relay()
            await self._room.announce(revoked)
        await self._count(proof, means.address, good=opened is not None or held is not None)
        # A wrong code's count must commit, and that a right one is used up: refused only now.
        if opened is None:
            raise held or MailSecretInvalid
        return opened

    async def request_change(self, caller: Caller, *, new_email: str, key: Key | None) -> datetime:
        """Mails a link to the new address and word to the old one; MailTooSoon within the pause."""
        now, to = self._room.clock.now(), normalise_email(new_email)
        async with self._room.database.transaction() as conn:

            async def effect() -> datetime:
                user = await users.lock_user(conn, caller.user_id or NOBODY)
                if user is None or user.erased_at is not None:
                    raise UserNotFound
                require_fresh(caller, user, now)
                turn = await emails.take_turn(
                    conn, self._room.pseudonym(str(user.id)), Purpose.CHANGE, now
                )
                if not turn.granted:
                    raise MailTooSoon(retry_after=(turn.next_at - now).total_seconds())
                await _send(
                    conn,
                    self._room,
                    Purpose.CHANGE,
                    user,
                    to=to,
                    now=now,
                    session_id=caller.session_id,
                )
                values = {"new_email": mask(to), "at": now.isoformat()}
                asked = Mail("email_change_requested", user.email, values, about=user.id)
                await enqueue(conn, asked, now)
                return turn.next_at

            next_at = await idempotency.once(conn, KEYS, key, datetime, effect, now=now)
        self._room.wake_relay()
        return next_at

    async def confirm_change(self, secret: str, key: Key | None = None) -> User:
        """
        Gives the account its new address; MailSecretInvalid, or EmailAlreadyTaken by now.

        The key again gets the first answer.
        """
        now = self._room.clock.now()
        ended: Sequence[UUID] = []
        async with self._room.database.transaction() as conn:

            async def effect() -> User:
                nonlocal ended
                proved = await self._prove(conn, Purpose.CHANGE, Proof(secret), now)
                if proved is None:
                    raise MailSecretInvalid
                found, user = proved
                ended = await self._change(conn, found, user, now)
                return replace(user, email=found.email, email_verified_at=now)

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        self._room.wake_relay()
        await self._room.announce(Revocations(ended, []))
        return user

    async def _change(
        self, conn: Connection, found: MailedSecret, user: User, now: datetime
    ) -> Sequence[UUID]:
        """Changes the address and tells both; returns the sessions that this ended."""
        asked = found.session_id
        # Whoever asked was put out since: what they asked for goes with them.
        if asked and withdrawn(await sessions.get_session(conn, asked)):
            raise MailSecretInvalid
        await emails.change_address(conn, user.id, found.email, now)
        # What was mailed to the old address is in the old mailbox.
        await emails.supersede(conn, user.id, now)
        for to in dict.fromkeys((user.email, found.email)):
            values = {"at": now.isoformat()}
            await enqueue(conn, Mail("email_changed", to, values, about=user.id), now)
        return await sessions.end_sessions(
            conn,
            user.id,
            reason=EndReason.EMAIL_CHANGED,
            by=f"user:{user.id}",
            now=now,
            spare=found.session_id,
        )

    async def _request(self, purpose: Purpose, email: str, address: str | None) -> datetime:
        """Mails to whoever has the address; the time of the answer does not tell whether any."""
        await self._limit(address)
        now, to = self._room.clock.now(), normalise_email(email)
        async with self._room.evenly(), self._room.database.transaction() as conn:
            turn = await emails.take_turn(conn, self._room.pseudonym(to), purpose, now)
            if turn.granted:
                found = await users.find_by_email(conn, to)
                user = found if found and not found.banned(now) else None
                await _send(conn, self._room, purpose, user, to=to, now=now)
        self._room.wake_relay()
        return turn.next_at

    async def _prove(
        self, conn: Connection, purpose: Purpose, proof: Proof, now: datetime
    ) -> tuple[MailedSecret, User] | None:
        """Uses a secret up and locks its account; None, with a wrong code counted, if it is bad."""
        if proof.secret:
            found = await emails.find_secret(conn, purpose, digest(proof.secret), now)
        else:
            found = await self._by_code(conn, purpose, proof, now)
        if found is None:
            return None
        # The account's lock comes first: what a concurrent change of it supersedes is then seen.
        user = await users.lock_user(conn, found.user_id)
        if user is None or user.banned(now) or user.erased_at is not None:
            return None
        if purpose is not Purpose.CHANGE and user.email != found.email:
            return None
        if not await emails.use_secret(conn, purpose, found.id, now):
            return None
        return found, user

    async def _by_code(
        self, conn: Connection, purpose: Purpose, proof: Proof, now: datetime
    ) -> MailedSecret | None:
        """
        Counts the guess, then looks: the same statements whether or not there is an account.

        Once its tries are spent a mail's code is dead. Its link is not: whoever knows an
        address could take the links of others away.
        """
        email = normalise_email(proof.email)
        number = await emails.count_try(conn, self._room.pseudonym(email), purpose)
        user = await users.find_by_email(conn, email)
        user_id = user.id if user else NOBODY
        found = await emails.find_open_secret(conn, purpose, user_id, now)
        expected = one_time.code_of(self._key, found.id if found else NOBODY)
        fits = hmac.compare_digest(expected, proof.code)
        return found if fits and number is not None else None

    async def _verified_before(self, conn: Connection, proof: Proof, now: datetime) -> bool:
        """Tells whether a link has verified the address that its account still has."""
        found = await emails.find_secret(conn, Purpose.VERIFY, digest(proof.secret), now)
        if found is None or found.used_at is None:
            return False
        user = await users.get_user(conn, found.user_id)
        return user is not None and user.email == found.email

    async def _set_password(
        self, conn: Connection, user: User, hashed: str | None, now: datetime
    ) -> Revocations:
        """Replaces the password and ends all that was opened or mailed under the old one."""
        await emails.replace_password(conn, user.id, hashed)
        await emails.supersede(conn, user.id, now)
        ended = await sessions.end_sessions(
            conn, user.id, reason=EndReason.PASSWORD_RESET, by=f"user:{user.id}", now=now
        )
        version = await users.revoke_tokens(conn, user.id, now)
        return Revocations(ended, [(user.id, version)])

    async def _check(self, proof: Proof, address: str | None) -> None:
        """TooManyAttempts while wrong codes hold callers off; a link cannot be guessed."""
        if not proof.secret:
            await self._attempts.check(_codes_of(proof), address)

    async def _count(self, proof: Proof, address: str | None, *, good: bool) -> None:
        """Counts how a proof by code went."""
        if proof.secret:
            return
        if not good:
            await self._attempts.failed(_codes_of(proof), address)
            return
        # Guesses beside this one are bounded by the row's count; what was proved stays proved.
        with contextlib.suppress(TooManyAttempts):
            await self._attempts.succeeded(_codes_of(proof), address)

    @contextlib.asynccontextmanager
    async def _counting_reuse(self, proof: Proof, address: str | None) -> AsyncIterator[None]:
        """Counts another code under a key that was used: a guess at what the first call proved."""
        try:
            yield
        except IdempotencyKeyReused:
            await self._count(proof, address, good=False)
            raise

    async def _limit(self, address: str | None) -> None:
        """TooManyAttempts if one client has mails sent to ever more people."""
        limit = replace(self._room.guesses.address, name="mail")
        one = Try(limit, self._room.pseudonym(network(address)))
        await self._room.limits.check(one)
        await self._room.limits.failed(one)


def _codes_of(proof: Proof) -> str:
    """Returns the account whose codes are guessed at; passwords are counted apart."""
    return f"mail:{normalise_email(proof.email)}"
