"""The use cases of accounts and sessions; each opens the one transaction it needs."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from chassis import idempotency, outbox
from chassis.clock import Clock
from chassis.errors import Refusal
from chassis.idempotency import Key
from chassis.ids import uuid7
from chassis.postgres import Connection, Database
from chassis.revocations import Revocations
from chassis.tokens import TokenVerifier
from services.auth import domain, store
from services.auth.domain import EndReason, Role, Session, SessionPolicy, User, Verdict
from services.auth.errors import (
    HashingBusy,
    LastAdmin,
    LoginFailed,
    RefreshTokenInvalid,
    RefreshTokenReplayed,
    SessionEnded,
    UserNotFound,
)
from services.auth.keys import Signer, make_key, open_key, public_jwk
from services.auth.passwords import Passwords

ROOM = "auth"
USER_REGISTERED = "user_registered"
USAGE = "usage"
KEYS = "auth_idempotency_keys"
PUBLISHED_FOR = timedelta(seconds=5)
# Stamp to commit: waiting for a connection and the transaction together take less.
LATEST_COMMIT = timedelta(seconds=60)

Announce = Callable[[Revocations], Awaitable[None]]


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


async def open_signer(database: Database, secret: bytes, issuer: str, clock: Clock) -> Signer:
    """Opens the signing key; on an empty database whichever replica is first makes it."""
    key = make_key(secret)
    async with database.transaction() as conn:
        await store.insert_signing_key(
            conn, kid=key.kid, public_key=key.public_key, sealed=key.sealed, now=clock.now()
        )
        kid, sealed = await store.get_signing_key(conn)
    return open_key(secret, kid, sealed, issuer)


class Authority:
    """The keys and revocations that token verifiers load, here and in every other service."""

    def __init__(self, database: Database, clock: Clock, access_token: timedelta) -> None:
        """`access_token` is the lifetime of a token: what was revoked earlier has expired."""
        self._database = database
        self._clock = clock
        self._access_token = access_token
        self._published: tuple[datetime, list[dict[str, str]]] | None = None

    async def signing_keys(self) -> Sequence[dict[str, str]]:
        """Returns the public keys as JSON Web Keys, the newest first."""
        now = self._clock.now()
        # The method is public: it must not be a way to keep the database busy.
        if self._published is None or now - self._published[0] > PUBLISHED_FOR:
            async with self._database.connection() as conn:
                keys = await store.list_public_keys(conn, now)
            self._published = now, [public_jwk(kid, public_key) for kid, public_key in keys]
        return self._published[1]

    async def revocations(self, since: datetime | None) -> Revocations:
        """Returns what was revoked after `since`, at most one access token lifetime back."""
        # A row stamped before and committed after this answer is found by the next one.
        as_of = self._clock.now() - LATEST_COMMIT
        oldest = as_of - self._access_token
        since = max(since, oldest) if since else oldest
        async with self._database.connection() as conn:
            return Revocations(
                await store.ended_sessions(conn, since),
                await store.revoked_versions(conn, since),
                as_of,
            )


class AuthService:
    """Accounts, sessions, tokens."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        passwords: Passwords,
        signer: Signer,
        verifier: TokenVerifier,
        policy: SessionPolicy,
        refresh_key: bytes,
        announce: Announce,
        wake_relay: Callable[[], None],
    ) -> None:
        """`announce` tells every process what was revoked, `wake_relay` that an event waits."""
        self._database = database
        self._clock = clock
        self._passwords = passwords
        self._signer = signer
        self._verifier = verifier
        self._policy = policy
        self._refresh_key = refresh_key
        self._announce = announce
        self._wake_relay = wake_relay

    async def register(self, *, email: str, password: str, key: Key | None) -> User:
        """Creates an account and announces it; EmailAlreadyTaken if the address has one."""
        hashed = await self._passwords.hash(password)
        now = self._clock.now()
        address = domain.normalise_email(email)
        async with self._database.transaction() as conn:

            async def effect() -> User:
                user = await store.insert_user(
                    conn, user_id=uuid7(now), email=address, password_hash=hashed, now=now
                )
                payload = {"user_id": str(user.id)}
                await outbox.enqueue(conn, ROOM, USER_REGISTERED, payload, [USAGE], now=now)
                return user

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        self._wake_relay()
        return user

    async def login(self, *, email: str, password: str, key: Key | None) -> tuple[Tokens, User]:
        """Opens a session; LoginFailed costs the same for a wrong address and a wrong password."""
        async with self._database.connection() as conn:
            found = await store.find_login(conn, domain.normalise_email(email))
        user, hashed = found or (None, None)
        fits = await self._passwords.verify(password, hashed)
        if not fits or user is None or hashed is None:
            raise LoginFailed
        new_hash = None
        if self._passwords.outdated(hashed):
            # Where there is no time for a new hash, the next login makes it.
            with contextlib.suppress(HashingBusy):
                new_hash = await self._passwords.hash(password)
        now = self._clock.now()
        session = Session(uuid7(now), user.id, 0, now, now + self._policy.absolute, now)
        token_id = str(uuid4())
        tokens = self._tokens(user, session, token_id, now)
        async with self._database.transaction() as conn:

            async def effect() -> UUID:
                # Another password may have been set since this one was verified.
                if not await store.record_login(
                    conn, user.id, verified=hashed, new_hash=new_hash, now=now
                ):
                    raise LoginFailed
                await store.insert_session(
                    conn,
                    session,
                    access_token_id=token_id,
                    refresh_digest=domain.digest(tokens.refresh_token),
                )
                return session.id

            session_id = await idempotency.once(conn, KEYS, key, UUID, effect, now=now)
            if session_id != session.id:
                return await self._opened_before(conn, session_id, now)
        return tokens, replace(user, last_login=now)

    async def refresh(self, refresh_token: str) -> Tokens:
        """Rotates a refresh token, or says why not; see domain.judge_reuse for the rule."""
        presented = domain.read_refresh_token(self._refresh_key, refresh_token)
        if presented is None:
            raise RefreshTokenInvalid
        session_id, counter = presented
        now = self._clock.now()
        successor = domain.write_refresh_token(self._refresh_key, session_id, counter + 1)
        token_id = str(uuid4())
        refusal: Refusal | None = None
        async with self._database.transaction() as conn:
            session = await store.rotate_session(
                conn,
                session_id=session_id,
                counter=counter,
                refresh_digest=domain.digest(successor),
                access_token_id=token_id,
                idle_since=now - self._policy.idle,
                now=now,
            )
            if session is None:
                session, refusal = await self._reuse(conn, session_id, counter, now)
            user = await store.get_user(conn, session.user_id) if session else None
        # The end of a replayed session must commit: it is refused only now.
        if refusal is not None:
            if isinstance(refusal, RefreshTokenReplayed):
                await self._announce(Revocations([session_id], []))
            raise refusal
        if session is None or user is None:
            raise RefreshTokenInvalid
        return self._tokens(user, session, token_id, now)

    async def logout(self, session_id: UUID, *, by: str) -> None:
        """Ends a session; ending it again changes nothing."""
        now = self._clock.now()
        async with self._database.transaction() as conn:
            ended = await store.end_session(
                conn, session_id, reason=EndReason.LOGOUT, by=by, now=now
            )
        if ended:
            await self._announce(Revocations([session_id], []))

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
        expires_at = datetime.fromtimestamp(expires, self._clock.now().tzinfo)
        return Introspection(caller.user_id, caller.session_id, Role(caller.role), expires_at)

    async def get_user(self, user_id: UUID) -> User:
        async with self._database.connection() as conn:
            user = await store.get_user(conn, user_id)
        if user is None:
            raise UserNotFound
        return user

    async def list_users(
        self, *, role: Role | None, before: UUID | None, limit: int
    ) -> tuple[Sequence[User], UUID | None]:
        """Returns a page, newest first, and the id after which the next one starts."""
        async with self._database.connection() as conn:
            users = await store.list_users(conn, role=role, before=before, limit=limit + 1)
        more = len(users) > limit
        return users[:limit], users[limit - 1].id if more else None

    async def set_role(
        self, *, user_id: UUID, role: Role, reason: str, actor: str, key: Key | None
    ) -> User:
        """Changes a role, ends older access tokens and logs it; LastAdmin guards the last one."""
        now = self._clock.now()
        async with self._database.transaction() as conn:

            async def effect() -> User:
                admins = await store.lock_admins(conn)
                user = await store.lock_user(conn, user_id)
                if user is None:
                    raise UserNotFound
                if user.role is role:
                    return user
                if admins == [user_id]:
                    raise LastAdmin
                changed = await store.set_role(conn, user_id, role, now)
                await store.insert_admin_log(
                    conn,
                    log_id=uuid7(now),
                    actor=actor,
                    action="set_role",
                    target=user_id,
                    details={"from": user.role, "to": role, "reason": reason},
                    now=now,
                )
                return changed

            user = await idempotency.once(conn, KEYS, key, User, effect, now=now)
        await self._announce(Revocations([], [(user.id, user.token_version)]))
        return user

    async def _reuse(
        self, conn: Connection, session_id: UUID, counter: int, now: datetime
    ) -> tuple[Session | None, Refusal | None]:
        session = await store.lock_session(conn, session_id)
        if session is None:
            return None, None
        match domain.judge_reuse(session, counter, self._policy, now):
            case Verdict.SUCCESSOR:
                return session, None
            case Verdict.UNKNOWN:
                return None, None
            case Verdict.ENDED:
                why = domain.over(session, self._policy, now) or ""
                await store.end_session(conn, session_id, reason=why, by="system", now=now)
                return session, SessionEnded(metadata={"end_reason": why})
            case Verdict.REPLAYED:
                await store.end_session(
                    conn, session_id, reason=EndReason.REPLAY, by="system", now=now
                )
                return session, RefreshTokenReplayed()

    async def _opened_before(
        self, conn: Connection, session_id: UUID, now: datetime
    ) -> tuple[Tokens, User]:
        session = await store.get_session(conn, session_id)
        user = await store.get_user(conn, session.user_id) if session else None
        # Only a session whose lifetime is over is deleted.
        why = domain.over(session, self._policy, now) if session else EndReason.EXPIRED
        if session is None or user is None or why is not None:
            raise SessionEnded(metadata={"end_reason": why or ""})
        return self._tokens(user, session, str(uuid4()), now), user

    def _tokens(self, user: User, session: Session, token_id: str, now: datetime) -> Tokens:
        expires = min(now + self._policy.access_token, session.expires_at)
        access = self._signer.sign(user, session, token_id=token_id, now=now, expires=expires)
        refresh = domain.write_refresh_token(self._refresh_key, session.id, session.counter)
        return Tokens(session, access, expires, refresh)
