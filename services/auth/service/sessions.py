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
from services.auth.domain.mfa import CHALLENGE_LIFE, HeldSignIn, read_challenge, write_challenge
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
from services.auth.service.attempts import Attempts, count_call
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
class Verified:
    """A password that fitted."""

    hashed: str
    """The hash it fitted, which must still be the account's when the session opens."""
    new_hash: str | None
    """What is to replace a hash of outdated parameters."""


@dataclass(frozen=True, slots=True)
class Introspection:
    """What a good access token says."""

    user_id: UUID
    session_id: UUID
    role: Role
    expires_at: datetime
    issued_at: datetime
    auth_time: datetime
    acr: str
    amr: tuple[str, ...]
    token_id: str
    actor: UUID | None
    """The administrator who acts as the user."""


class SessionService:
    """Sessions and tokens."""

    def __init__(self, room: Room, verifier: TokenVerifier) -> None:
        self._room = room
        self._verifier = verifier
        self._attempts = Attempts(room)
        self._refresh_key = room.derive("refresh-tokens")
        self._challenge_key = room.derive("mfa-challenges")

    async def sign_in(
        self,
        conn: Connection,
        user_id: UUID,
        means: Means,
        now: datetime,
        *,
        password: Verified | None = None,
    ) -> tuple[Tokens, User]:
        """
        Opens a session; every way to log in ends here, in the transaction that proved it.

        LoginFailed if the account is banned, erased or gone: a proof of who
        somebody is does not yet let them in. The same if `password` was changed
        since it was verified. MfaRequired, which rolls back what the caller did, if
        the account has a second factor and one is all there is.
        """
        ends = now + self._room.policy.absolute
        session = Session(
            uuid7(now),
            user_id,
            0,
            now,
            ends,
            now,
            amr=means.amr,
            acr=means.acr,
            authenticated_at=means.authenticated_at,
        )
        token_id = str(uuid4())
        refresh_token = write_refresh_token(self._refresh_key, session.id, 0)
        user = await sessions.open_session(
            conn,
            session,
            device=means.device,
            address=means.address,
            access_token_id=token_id,
            refresh_digest=digest(refresh_token),
            verified=password.hashed if password else None,
            new_hash=password.new_hash if password else None,
        )
        if user is None:
            raise await self._refusal(conn, user_id, means, now, password)
        return self.tokens(user, session, token_id, now, refresh_token), user

    async def login(
        self, *, email: str, password: str, means: Means, key: Key | None
    ) -> tuple[Tokens, User]:
        """Opens a session; whatever is wrong, LoginFailed costs the same and says the same."""
        user_id, verified = await self._verify(normalise_email(email), password, means)
        try:
            return await self._open(user_id, verified, means, key)
        except MfaRequired:
            if verified.new_hash is not None:
                # What held the session back kept the new hash back with it.
                async with self._room.database.connection() as conn:
                    await users.confirm_password(
                        conn, user_id, verified=verified.hashed, new_hash=verified.new_hash
                    )
            raise

    async def _open(
        self, user_id: UUID, verified: Verified, means: Means, key: Key | None
    ) -> tuple[Tokens, User]:
        now = self._room.clock.now()
        if key is None:
            # One statement, which needs no transaction around it.
            async with self._room.database.connection() as conn:
                return await self.sign_in(conn, user_id, means, now, password=verified)
        opened: tuple[Tokens, User] | None = None
        async with self._room.database.transaction() as conn:

            async def effect() -> UUID:
                nonlocal opened
                opened = await self.sign_in(conn, user_id, means, now, password=verified)
                return opened[0].session.id

            session_id = await idempotency.once(conn, KEYS, key, UUID, effect, now=now)
            return opened or await self.opened_before(conn, session_id, now)

    async def _verify(self, email: str, password: str, means: Means) -> tuple[UUID, Verified]:
        """Returns whose password it is; LoginFailed if it is nobody's."""
        self._attempts.check_here(email, means.address)
        async with self._room.database.connection() as conn:
            user_id, hashed = await users.find_login(conn, email)
        fits = await self._room.passwords.verify(password, hashed)
        if not fits or user_id is None or hashed is None:
            await self._attempts.failed(email, means.address)
            raise LoginFailed
        await self._attempts.succeeded(email, means.address)
        new_hash = None
        if self._room.passwords.outdated(hashed):
            # Where there is no time for a new hash, the next login makes it.
            with contextlib.suppress(HashingBusy):
                new_hash = await self._room.passwords.hash(password)
        return user_id, Verified(hashed, new_hash)

    async def _refusal(
        self,
        conn: Connection,
        user_id: UUID,
        means: Means,
        now: datetime,
        password: Verified | None,
    ) -> Refusal:
        """Returns why no session was opened, as the account is now."""
        user, hashed = await users.find_password(conn, user_id) or (None, None)
        if user is None or user.banned(now) or user.erased_at is not None:
            return LoginFailed()
        if password is not None and hashed != password.hashed:
            return LoginFailed()
        return await self._held_back(conn, user, means, now)

    async def _held_back(
        self, conn: Connection, user: User, means: Means, now: datetime
    ) -> MfaRequired:
        held = HeldSignIn(
            uuid7(now), user.id, user.token_version, means.amr, means.device, now + CHALLENGE_LIFE
        )
        return await self.hold_back(conn, held)

    async def hold_back(self, conn: Connection, held: HeldSignIn) -> MfaRequired:
        """Returns the refusal of a sign-in that waits; for the same one the same challenge."""
        challenge = write_challenge(self._challenge_key, held)
        methods = ",".join(await mfa.list_methods(conn, held.user_id))
        return MfaRequired(metadata={"challenge": challenge, "methods": methods})

    def held_by(self, refusal: MfaRequired, now: datetime) -> HeldSignIn | None:
        """Returns the sign-in that a refusal of now holds back."""
        return read_challenge(self._challenge_key, refusal.metadata["challenge"], now)

    async def opened_before(
        self, conn: Connection, session_id: UUID, now: datetime
    ) -> tuple[Tokens, User]:
        """
        Returns the tokens of the session that an earlier call with the same key opened.

        SessionEnded if it is over, or would not be opened any more by what that call proved.
        """
        session = await sessions.get_session(conn, session_id)
        user = await users.get_user(conn, session.user_id) if session else None
        # Only a session whose lifetime is long over is deleted.
        why = over(session, self._room.policy, now) if session else EndReason.EXPIRED
        if session is None or user is None or why is not None:
            raise SessionEnded(metadata={"end_reason": why or ""})
        # An impersonator never proved the user's factors.
        if (
            user.mfa_enabled_at is not None
            and session.acr is not Acr.AAL2
            and session.impersonated_by is None
        ):
            raise SessionEnded(metadata={"end_reason": EndReason.MFA_CHANGED})
        return self.tokens(user, session, str(uuid4()), now), user

    async def refresh(self, refresh_token: str, address: str | None = None) -> Tokens:
        """
        Rotates a refresh token, or says why not; see domain.judge_reuse for the rule.

        `address` is where it came from, kept as where the session or its replay was seen last.
        """
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
                address=address,
                now=now,
            )
            if session is None:
                session, refusal = await self._reuse(conn, session_id, counter, address, now)
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

    async def revoke_token(self, refresh_token: str, address: str | None) -> None:
        """
        Ends the session of a refresh token; any other text changes nothing (RFC 7009).

        An older token does it too: whoever has one could end the session by its replay.
        TooManyAttempts if one network asks ever more often.
        """
        await count_call(self._room, "revoke", address)
        presented = read_refresh_token(self._refresh_key, refresh_token)
        if presented is None:
            return
        session_id, counter = presented
        async with self._room.database.connection() as conn:
            session = await sessions.get_session(conn, session_id)
        # A counter only grows, and whose a session is never changes: no lock is needed.
        if session is None or counter > session.counter:
            return
        if over(session, self._room.policy, self._room.clock.now()) is None:
            await self.logout(session_id, by=f"user:{session.impersonated_by or session.user_id}")

    async def validate_token(self, token: str) -> Introspection | None:
        """Returns what a good access token says, None for any other (RFC 7662 section 2.2)."""
        try:
            said = await self._verifier.inspect(token)
        except Refusal as refusal:
            if refusal.reason == "PEER_UNAVAILABLE":
                raise
            return None
        caller = said.caller
        if caller.user_id is None or caller.session_id is None:
            return None
        zone = self._room.clock.now().tzinfo
        issued = datetime.fromtimestamp(said.issued, zone)
        return Introspection(
            caller.user_id,
            caller.session_id,
            Role(caller.role),
            datetime.fromtimestamp(said.expires, zone),
            issued,
            caller.auth_time or issued,
            caller.acr,
            said.amr,
            said.token_id,
            caller.actor,
        )

    async def _reuse(
        self,
        conn: Connection,
        session_id: UUID,
        counter: int,
        address: str | None,
        now: datetime,
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
                await sessions.end_replayed(
                    conn, session_id, seen=counter, address=address, now=now
                )
                return session, RefreshTokenReplayed()

    def tokens(
        self,
        user: User,
        session: Session,
        token_id: str,
        now: datetime,
        refresh_token: str | None = None,
    ) -> Tokens:
        """Signs what the client keeps of a session; its refresh token may be written already."""
        expires = min(now + self._room.policy.access_token, session.expires_at)
        access = self._room.signer.sign(user, session, token_id=token_id, now=now, expires=expires)
        refresh = refresh_token or write_refresh_token(
            self._refresh_key, session.id, session.counter
        )
        return Tokens(session, access, expires, refresh)
