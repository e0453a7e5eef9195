"""Proving who is there: with a second factor at sign-in, and once more within a session."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

from chassis.callers import Caller
from chassis.errors import Refusal
from chassis.postgres import Connection
from chassis.refusals import TooManyAttempts
from services.auth.domain.emails import Change
from services.auth.domain.mfa import Purpose, read_challenge
from services.auth.domain.sessions import Acr, Means
from services.auth.domain.users import User
from services.auth.errors import (
    LoginFailed,
    MfaChallengeInvalid,
    MfaCodeInvalid,
    SessionEnded,
    StepUpRequired,
)
from services.auth.service.attempts import Attempts
from services.auth.service.mail import tell_of_change
from services.auth.service.mfa import MfaService, own
from services.auth.service.passkeys import PasskeyService
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService, Tokens
from services.auth.service.step_up import STEP_UP_SECONDS
from services.auth.store import mfa, sessions, users


class ProofKind(StrEnum):
    """What can be presented; the names of the contract's fields."""

    PASSWORD = "password"  # noqa: S105
    TOTP = "totp_code"
    RECOVERY = "recovery_code"
    PASSKEY = "credential_json"


@dataclass(frozen=True, slots=True)
class Proof:
    """What somebody presents to say who they are."""

    kind: ProofKind
    text: str


@dataclass(frozen=True, slots=True)
class _Guess:
    """A second factor as it is presented, counted apart from passwords."""

    attempts: Attempts | None
    """None if it is of a kind that nobody guesses."""
    account: str
    address: str | None

    async def check(self) -> None:
        """TooManyAttempts while wrong ones hold callers off."""
        if self.attempts is not None:
            await self.attempts.check(self.account, self.address)

    async def in_time(self) -> bool:
        """
        Tells whether a right proof comes before the limit was used up, and forgives if so.

        Asked under the account's lock, after the proof was judged and before what it
        opens: guesses that were counted up to then hold off the right one, and no
        session is open that would have to be taken back. A frozen Redis costs this
        account 250 ms, once in five seconds. Raised here, TooManyAttempts would roll
        back that the proof was used; it is raised after the commit, by counting the
        failure.
        """
        if self.attempts is None:
            return True
        try:
            await self.attempts.succeeded(self.account, self.address)
        except TooManyAttempts:
            return False
        return True

    async def failed(self) -> None:
        """Counts a wrong one; TooManyAttempts if others used the limit up beside it."""
        if self.attempts is not None:
            await self.attempts.failed(self.account, self.address)


class ProofService:
    """Sign-ins by second factor and step-up."""

    def __init__(
        self, room: Room, session_service: SessionService, factors: MfaService, keys: PasskeyService
    ) -> None:
        self._room = room
        self._sessions = session_service
        self._factors = factors
        self._passkeys = keys
        self._passwords = Attempts(room)
        self._codes = Attempts(room, room.guesses.second)
        self._challenge_key = room.derive("mfa-challenges")

    async def complete_sign_in(
        self, *, challenge: str, proof: Proof, address: str | None
    ) -> tuple[Tokens, User]:
        """
        Opens the session that MfaRequired held back, once.

        MfaChallengeInvalid, MfaCodeInvalid or PasskeyInvalid; LoginFailed if the
        account was banned or erased meanwhile. A wrong try counts against the
        challenge and slows down the account.
        """
        now = self._room.clock.now()
        held = read_challenge(self._challenge_key, challenge, now)
        if held is None:
            raise MfaChallengeInvalid
        guess = self._guess(proof, held.user_id, address)
        await guess.check()
        opened: tuple[Tokens, User] | None = None
        async with self._room.database.transaction() as conn:
            user = await users.lock_user(conn, held.user_id)
            if user is None or user.erased_at is not None or user.banned(now):
                raise LoginFailed
            if user.token_version != held.token_version or not await mfa.count_try(
                conn, held.id, user_id=user.id, expires_at=held.expires_at
            ):
                raise MfaChallengeInvalid
            judged = await self._judge(conn, user, proof, now)
            if not isinstance(judged, Refusal) and await guess.in_time():
                # The try was counted under the same row's lock; this lets nobody in after it.
                if not await mfa.take_challenge(
                    conn, held.id, Purpose.SIGN_IN, user_id=user.id, now=now
                ):
                    raise MfaChallengeInvalid
                means = Means((*held.amr, judged), Acr.AAL2, held.device, address)
                opened = await self._sessions.sign_in(conn, user.id, means, now)
        # A wrong try must commit: it is refused only now.
        if opened is None:
            await guess.failed()
            raise judged if isinstance(judged, Refusal) else MfaChallengeInvalid
        self._room.wake_relay()
        return opened

    async def sign_in_with_passkey(self, credential: str, means: Means) -> tuple[Tokens, User]:
        """Opens a session with a passkey alone; PasskeyInvalid whatever is wrong with it."""
        now = self._room.clock.now()
        opened: tuple[Tokens, User] | None = None
        async with self._room.database.transaction() as conn:
            judged = await self._passkeys.prove(conn, credential, owner=None, now=now)
            if not isinstance(judged, Refusal):
                means = Means((judged.amr,), Acr.AAL2, means.device, means.address)
                opened = await self._sessions.sign_in(conn, judged.user_id, means, now)
        # That its challenge was used must commit: it is refused only now.
        if opened is None:
            raise judged if isinstance(judged, Refusal) else LoginFailed
        return opened

    async def step_up(self, caller: Caller, proof: Proof, address: str | None) -> Tokens:
        """
        Proves once more who is there; returns tokens of the same session that say so.

        StepUpRequired if the account has a factor and the proof is none. A wrong
        one is LoginFailed, MfaCodeInvalid or PasskeyInvalid and slows down the account.
        """
        if proof.kind is ProofKind.PASSWORD:
            return await self._by_password(caller, proof.text, address)
        now = self._room.clock.now()
        tokens: Tokens | None = None
        guess = self._guess(proof, caller.user_id, address)
        await guess.check()
        async with self._room.database.transaction() as conn:
            user = await own(conn, caller)
            judged = await self._judge(conn, user, proof, now)
            if not isinstance(judged, Refusal) and await guess.in_time():
                tokens = await self._raise(conn, caller, user, amr=judged, acr=Acr.AAL2)
        if tokens is None:
            await guess.failed()
            raise judged if isinstance(judged, Refusal) else MfaCodeInvalid
        self._room.wake_relay()
        return tokens

    def _guess(self, proof: Proof, user_id: UUID | None, address: str | None) -> "_Guess":
        # A passkey cannot be guessed: codes that somebody else tries must not keep its owner out.
        counted = None if proof.kind is ProofKind.PASSKEY else self._codes
        return _Guess(counted, f"mfa:{user_id}", address)

    async def _by_password(self, caller: Caller, password: str, address: str | None) -> Tokens:
        async with self._room.database.connection() as conn:
            user = await users.get_user(conn, caller.user_id) if caller.user_id else None
            _, hashed = await users.find_login(conn, user.email) if user else (None, None)
        if user is None or user.mfa_enabled_at is not None:
            raise _too_weak()
        await self._passwords.check(user.email, address)
        if not await self._room.passwords.verify(password, hashed) or hashed is None:
            await self._passwords.failed(user.email, address)
            raise LoginFailed
        await self._passwords.succeeded(user.email, address)
        async with self._room.database.transaction() as conn:
            # Another password may have been set since this one was verified.
            if not await users.confirm_password(conn, user.id, verified=hashed, new_hash=None):
                raise LoginFailed
            user = await own(conn, caller)
            # A factor may have been added meanwhile.
            if user.mfa_enabled_at is not None:
                raise _too_weak()
            return await self._raise(conn, caller, user, amr="pwd", acr=Acr.AAL1)

    async def _raise(
        self, conn: Connection, caller: Caller, user: User, *, amr: str, acr: Acr
    ) -> Tokens:
        now = self._room.clock.now()
        session = caller.session_id and await sessions.step_up_session(
            conn, caller.session_id, user_id=user.id, amr=(amr,), acr=acr, now=now
        )
        if not session:
            raise SessionEnded(metadata={"end_reason": ""})
        return self._sessions.tokens(user, session, str(uuid4()), now)

    async def _judge(
        self, conn: Connection, user: User, proof: Proof, now: datetime
    ) -> str | Refusal:
        """Returns the method that a right proof is, or why it is none."""
        right, method = False, ""
        match proof.kind:
            case ProofKind.PASSKEY:
                shown = await self._passkeys.prove(conn, proof.text, owner=user.id, now=now)
                return shown if isinstance(shown, Refusal) else shown.amr
            case ProofKind.TOTP:
                right = await self._factors.take_totp(conn, user.id, proof.text, now)
                method = "otp"
            case ProofKind.RECOVERY:
                right = await self._factors.take_recovery_code(conn, user.id, proof.text, now)
                method = "recovery"
                if right:
                    await tell_of_change(conn, user, Change.CODE_USED, now)
        return method if right else MfaCodeInvalid()


def _too_weak() -> StepUpRequired:
    return StepUpRequired(metadata={"acr_values": Acr.AAL2, "max_age": STEP_UP_SECONDS})
