"""Sessions: the one way to open one, and the use cases of their tokens."""

import contextlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from chassis import idempotency
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection
from chassis.revocations import Revocations
from chassis.tokens import TokenVerifier
from services.auth.domain.mfa import CHALLENGE_LIFE, HeldSignIn, write_challenge
from services.auth.domain.sessions import (
    Acr,
    EndReason,
    Means,
    Session,
    Verdict,
    digest,
    judge_reuse,
    over,
    read_refresh_token,
    write_refresh_token,
)
from services.auth.domain.users import Role, User, normalise_email
from services.auth.errors import (
    HashingBusy,
    LoginFailed,
    MfaRequired,
    RefreshTokenInvalid,
    RefreshTokenReplayed,
    SessionEnded,
)
from services.auth.service.attempts import Attempts
from services.auth.service.room import KEYS, Room
from services.auth.store import mfa, sessions, users


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a client gets of a session."""

    session: Session
    access_token: str
    access_token_expires_at: datetime
    refresh_token: str


@dataclass(frozen=True, slots=True)
class Introspection:
    """What a good access token says."""

    user_id: UUID
    session_id: UUID
    role: Role
    expires_at: datetime


class SessionService:
    """Sessions and tokens."""

    def __init__(self, room: Room, verifier: TokenVerifier) -> None:
        self._room = room
        self._verifier = verifier
        self._attempts = Attempts(room)
        self._refresh_key = room.derive("refresh-tokens")
        self._challenge_key = room.derive("mfa-challenges")

    async def sign_in(
        self, conn: Connection, user_id: UUID, means: Means, now: datetime
    ) -> tuple[Tokens, User]:
        """
        Opens a session; every way to log in ends here, in the transaction that proved it.

        LoginFailed if the account is banned, erased or gone: a proof of who
        somebody is does not yet let them in. MfaRequired, which rolls back what
        the caller did, if the account has a second factor and one is all there is.
        """
        user = await users.record_login(conn, user_id, now)
        if user is None:
            raise LoginFailed
        if user.mfa_enabled_at is not None and means.acr is not Acr.AAL2:
            raise await self._held_back(conn, user, means, now)
        session = Session(
            uuid7(now),
            user.id,
            0,
            now,
            now + self._room.policy.absolute,
            now,
            amr=means.amr,
            acr=means.acr,
        )
        token_id = str(uuid4())
        tokens = self.tokens(user, session, token_id, now)
        await sessions.insert_session(
            conn,
            session,
            device=means.device,
            address=means.address,
            access_token_id=token_id,
            refresh_digest=digest(tokens.refresh_token),
        )
        return tokens, user

    async def login(
        self, *, email: str, password: str, means: Means, key: Key | None
    ) -> tuple[Tokens, User]:
        """Opens a session; whatever is wrong, LoginFailed costs the same and says the same."""
        address = normalise_email(email)
        await self._attempts.check(address, means.address)
        async with self._room.database.connection() as conn:
            found = await users.find_login(conn, address)
        user, hashed = found or (None, None)
        fits = await self._room.passwords.verify(password, hashed)
        if not fits or user is None or hashed is None:
            await self._attempts.failed(address, means.address)
            raise LoginFailed
        await self._attempts.succeeded(address, means.address)
        new_hash = None
        if self._room.passwords.outdated(hashed):
            # Where there is no time for a new hash, the next login makes it.
            with contextlib.suppress(HashingBusy):
                new_hash = await self._room.passwords.hash(password)
        try:
            return await self._open(user.id, hashed, new_hash, means, key)
        except MfaRequired:
            if new_hash is not None:
                # What held the session back took the new hash back with it.
                async with self._room.database.transaction() as conn:
                    await users.confirm_password(conn, user.id, verified=hashed, new_hash=new_hash)
            raise

    async def _open(
        self, user_id: UUID, hashed: str, new_hash: str | None, means: Means, key: Key | None
    ) -> tuple[Tokens, User]:
        now = self._room.clock.now()
        opened: tuple[Tokens, User] | None = None
        async with self._room.database.transaction() as conn:

            async def effect() -> UUID:
                nonlocal opened
                # Another password may have been set since this one was verified.
                if not await users.confirm_password(
                    conn, user_id, verified=hashed, new_hash=new_hash
                ):
                    raise LoginFailed
                opened = await self.sign_in(conn, user_id, means, now)
                return opened[0].session.id

            session_id = await idempotency.once(conn, KEYS, key, UUID, effect, now=now)
            return opened or await self.opened_before(conn, session_id, now)

    async def _held_back(
        self, conn: Connection, user: User, means: Means, now: datetime
    ) -> MfaRequired:
        held = HeldSignIn(
            uuid7(now), user.id, user.token_version, means.amr, means.device, now + CHALLENGE_LIFE
        )
        challenge = write_challenge(self._challenge_key, held)
        methods = ",".join(await mfa.list_methods(conn, user.id))
        return MfaRequired(metadata={"challenge": challenge, "methods": methods})

    async def opened_before(
        self, conn: Connection, session_id: UUID, now: datetime
    ) -> tuple[Tokens, User]:
        """Returns the tokens of the session that an earlier call with the same key opened."""
        session = await sessions.get_session(conn, session_id)
        user = await users.get_user(conn, session.user_id) if session else None
        # Only a session whose lifetime is over is deleted.
        why = over(session, self._room.policy, now) if session else EndReason.EXPIRED
        if session is None or user is None or why is not None:
            raise SessionEnded(metadata={"end_reason": why or ""})
        return self.tokens(user, session, str(uuid4()), now), user

    async def refresh(self, refresh_token: str) -> Tokens:
        """Rotates a refresh token, or says why not; see domain.judge_reuse for the rule."""
        presented = read_refresh_token(self._refresh_key, refresh_token)
        if presented is None:
            raise RefreshTokenInvalid
        session_id, counter = presented
        now = self._room.clock.now()
        successor = write_refresh_token(self._refresh_key, session_id, counter + 1)
        token_id = str(uuid4())
        refusal: Refusal | None = None
        async with self._room.database.transaction() as conn:
            session = await sessions.rotate_session(
                conn,
                session_id=session_id,
                counter=counter,
                refresh_digest=digest(successor),
                access_token_id=token_id,
                idle_since=now - self._room.policy.idle,
                now=now,
            )
            if session is None:
                session, refusal = await self._reuse(conn, session_id, counter, now)
            user = await users.get_user(conn, session.user_id) if session else None
        # The end of a replayed session must commit: it is refused only now.
        if refusal is not None:
            if isinstance(refusal, RefreshTokenReplayed):
                await self._room.announce(Revocations([session_id], []))
            raise refusal
        if session is None or user is None:
            raise RefreshTokenInvalid
        return self.tokens(user, session, token_id, now)

    async def logout(self, session_id: UUID, *, by: str) -> None:
        """Ends a session; ending it again changes nothing."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            ended = await sessions.end_session(
                conn, session_id, reason=EndReason.LOGOUT, by=by, now=now
            )
        if ended:
            await self._room.announce(Revocations([session_id], []))

    async def validate_token(self, token: str) -> Introspection | None:
        """Returns what a good access token says, None for any other (RFC 7662 section 2.2)."""
        try:
            caller, expires = await self._verifier.expiry(token)
        except Refusal as refusal:
            if refusal.reason == "PEER_UNAVAILABLE":
                raise
            return None
        if caller.user_id is None or caller.session_id is None:
            return None
        expires_at = datetime.fromtimestamp(expires, self._room.clock.now().tzinfo)
        return Introspection(caller.user_id, caller.session_id, Role(caller.role), expires_at)

    async def _reuse(
        self, conn: Connection, session_id: UUID, counter: int, now: datetime
    ) -> tuple[Session | None, Refusal | None]:
        session = await sessions.lock_session(conn, session_id)
        if session is None:
            return None, None
        match judge_reuse(session, counter, self._room.policy, now):
            case Verdict.SUCCESSOR:
                return session, None
            case Verdict.UNKNOWN:
                return None, None
            case Verdict.ENDED:
                why = over(session, self._room.policy, now) or ""
                await sessions.end_session(conn, session_id, reason=why, by="system", now=now)
                return session, SessionEnded(metadata={"end_reason": why})
            case Verdict.REPLAYED:
                await sessions.end_session(
                    conn, session_id, reason=EndReason.REPLAY, by="system", now=now
                )
                return session, RefreshTokenReplayed()

    def tokens(self, user: User, session: Session, token_id: str, now: datetime) -> Tokens:
        """Signs what the client keeps of a session."""
        expires = min(now + self._room.policy.access_token, session.expires_at)
        access = self._room.signer.sign(user, session, token_id=token_id, now=now, expires=expires)
        refresh = write_refresh_token(self._refresh_key, session.id, session.counter)
        return Tokens(session, access, expires, refresh)
