"""Logins of plugins and devices that a user approves elsewhere (RFC 8628)."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from chassis.callers import Caller
from chassis.errors import Refusal, Unauthenticated
from chassis.ids import uuid7
from chassis.limits import Limit, Try
from chassis.postgres import Connection
from chassis.refusals import AccessDenied, Conflict, TooManyAttempts
from services.auth.domain.devices import (
    CODE_GUESSES,
    DEVICE_CODE_BYTES,
    INTERVAL_SECONDS,
    LIFETIME,
    USER_CODES,
    Approval,
    DeviceLogin,
    Standing,
    digest_user_code,
    spell_user_code,
    withdrawn,
)
from services.auth.domain.sessions import STEP_UP_AGE, Acr, Means, Session, digest
from services.auth.domain.users import User
from services.auth.errors import (
    AuthorizationPending,
    DeviceCodeExpired,
    DeviceCodeInvalid,
    DeviceDenied,
    SlowDown,
    UserCodeInvalid,
)
from services.auth.service.attempts import network
from services.auth.service.mail import Mail, enqueue
from services.auth.service.mfa import own
from services.auth.service.room import Room
from services.auth.service.sessions import SessionService, Tokens
from services.auth.service.step_up import require_fresh, require_living
from services.auth.store import devices, sessions, users

# Each is taken with a chance of one in a thousand million.
_SPELLINGS = 5
# The guess after the last free one waits until every code of now is over.
_FIRST_WAIT = LIFETIME.total_seconds()
# Tokens say seconds.
_NOT_FRESH = STEP_UP_AGE + timedelta(seconds=1)
_BY_USER = Limit("device-user", CODE_GUESSES - 1, _FIRST_WAIT, 3600.0, remembered=7200.0)
_BY_ADDRESS = Limit("device-address", CODE_GUESSES - 1, _FIRST_WAIT, 3600.0, remembered=7200.0)


@dataclass(frozen=True, slots=True)
class Started:
    """What a device gets when it starts; the codes rest nowhere else."""

    login: DeviceLogin
    device_code: str
    user_code: str
    verification_uri: str


class DeviceService:
    """Logins of plugins and devices."""

    def __init__(self, room: Room, session_service: SessionService) -> None:
        self._room = room
        self._sessions = session_service
        self._user_codes = room.derive("device-user-codes")

    async def start(self, *, client_name: str, address: str | None) -> Started:
        """Starts a login; TooManyAttempts while too many of the address's network wait."""
        now = self._room.clock.now()
        login = DeviceLogin(
            uuid7(now), client_name, address or "", now, now + LIFETIME, INTERVAL_SECONDS
        )
        where = network(address)
        device_code = secrets.token_urlsafe(DEVICE_CODE_BYTES)
        async with self._room.database.transaction() as conn:
            await self._make_room(conn, where, now)
            for _ in range(_SPELLINGS):
                user_code = spell_user_code(secrets.randbelow(USER_CODES))
                if await devices.insert_login(
                    conn,
                    login,
                    network=where,
                    device_code=digest(device_code),
                    user_code=digest_user_code(self._user_codes, user_code),
                ):
                    uri = self._room.devices.verification_uri
                    return Started(login, device_code, user_code, uri)
        raise Conflict

    async def poll(self, device_code: str, *, address: str | None) -> tuple[Tokens, User]:
        """
        Opens the device's session once somebody has approved; until then, says why not.

        Of any number of polls one opens it. Were its answer lost, the device starts
        again (RFC 8628 has no retry): the code is used up.
        """
        now = self._room.clock.now()
        code = digest(device_code)
        async with self._room.database.transaction() as conn:
            login = await devices.poll(conn, code, now)
            if login is not None and login.approval is not None:
                answer = await self._open(conn, login, login.approval, address, now)
            else:
                answer = await self._refusal(conn, code, login, now)
        # That it was polled or claimed, and how, must commit: it is refused only now.
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def inspect(self, *, caller: Caller, user_code: str, address: str | None) -> DeviceLogin:
        """Returns the login that waits with a code; a wrong code is a guess."""
        user_id = _identity(caller)
        tries = self._tries(user_id, address)
        await self._room.limits.check(*tries)
        code = digest_user_code(self._user_codes, user_code)
        async with self._room.database.connection() as conn:
            login = await devices.find_pending(conn, code, self._room.clock.now())
        return await self._judge(login, tries)

    async def approve(self, *, caller: Caller, user_code: str, address: str | None) -> DeviceLogin:
        """Lets a device log in as the caller; whoever is first wins, again changes nothing."""
        user_id = _identity(caller)
        tries = self._tries(user_id, address)
        await self._room.limits.check(*tries)
        code = digest_user_code(self._user_codes, user_code)
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:
            # Locked before the login's row, although a poll locks that one first: a poll waits for
            # an approver alone, who holds this lock until the approval is there to be seen.
            user = await own(conn, caller)
            # A device's session outlives the token that approves it. Before the code is looked at:
            # whoever lacks a proof learns nothing of it.
            require_fresh(caller, user, now)
            session = await require_living(conn, caller, self._room.policy, now)
            approval = _approval(caller, session)
            approved = await devices.approve(conn, code, approval, now)
            if approved is None:
                # Perhaps the answer to the caller's own approval was lost.
                before = await devices.find_approved(conn, code, user_id, now)
                return await self._judge(before, tries)
            # A guess that must not get through is rolled back.
            await self._judge(approved, tries)
            await enqueue(conn, _approved(user, approved, now), now)
        # Each code forgives once, and its user alone: an address with codes of its own
        # would never be held off.
        await self._room.limits.forget(tries[0])
        self._room.wake_relay()
        return approved

    async def deny(self, *, caller: Caller, user_code: str, address: str | None) -> None:
        """Refuses a device for good; again changes nothing."""
        user_id = _identity(caller)
        tries = self._tries(user_id, address)
        await self._room.limits.check(*tries)
        code = digest_user_code(self._user_codes, user_code)
        async with self._room.database.transaction() as conn:
            login = await devices.deny(conn, code, self._room.clock.now())
            await self._judge(login, tries)

    async def _make_room(self, conn: Connection, where: str, now: datetime) -> None:
        # A number of rows is beyond a constraint: starts of one network wait for each other.
        await devices.lock_network(conn, where)
        most = self._room.devices.codes_per_address
        until = await devices.full_until(conn, where, most=most, now=now)
        if until is not None:
            raise TooManyAttempts(retry_after=(until - now).total_seconds())

    async def _open(
        self,
        conn: Connection,
        login: DeviceLogin,
        approval: Approval,
        address: str | None,
        now: datetime,
    ) -> tuple[Tokens, User] | Refusal:
        """Opens the session that was approved, or returns why not: that it is used up commits."""
        # The account first, as whatever takes sessions away locks it: either that is seen here,
        # or it sees the session opened here.
        user = await users.lock_user(conn, approval.user_id)
        weak = user is not None and user.mfa_enabled_at is not None and approval.acr is not Acr.AAL2
        if weak or withdrawn(await sessions.get_session(conn, approval.session_id)):
            return DeviceDenied()
        means = Means(
            approval.amr,
            approval.acr,
            device=login.client_name,
            address=address,
            # Whoever was talked into approving proved nothing on that device: it has to step up
            # by itself before it may change how one signs in.
            authenticated_at=min(approval.authenticated_at, now - _NOT_FRESH),
        )
        try:
            return await self._sessions.sign_in(conn, approval.user_id, means, now)
        except Unauthenticated:
            return DeviceDenied()

    async def _refusal(
        self, conn: Connection, code: str, polled: DeviceLogin | None, now: datetime
    ) -> Refusal:
        if polled is not None:
            return _wait(AuthorizationPending, polled)
        slowed = await devices.slow_down(conn, code, now)
        if slowed is not None:
            return _wait(SlowDown, slowed)
        # It is over then, and stays so.
        login = await devices.find_by_device_code(conn, code)
        match login.standing(now) if login else None:
            case Standing.DENIED:
                return DeviceDenied()
            case Standing.EXPIRED:
                return DeviceCodeExpired()
            case _:
                return DeviceCodeInvalid()

    async def _judge(self, login: DeviceLogin | None, tries: list[Try]) -> DeviceLogin:
        """
        Returns the login, or counts a wrong guess.

        Guesses that ran beside this one may have used the limit up. Right and wrong
        ones are then refused alike: another refusal for the right one would name it.
        That is why an approval or denial asks within its transaction, which a refusal
        rolls back; a frozen Redis costs it 250 ms, once in five seconds.
        """
        await self._room.limits.check(*tries)
        if login is None:
            await self._room.limits.failed(*tries)
            raise UserCodeInvalid
        return login

    def _tries(self, user_id: UUID, address: str | None) -> list[Try]:
        where = self._room.pseudonym(network(address))
        who = self._room.pseudonym(str(user_id))
        return [Try(_BY_USER, who), Try(_BY_ADDRESS, where)]


def _identity(caller: Caller) -> UUID:
    if caller.user_id is None or caller.session_id is None:
        raise AccessDenied
    return caller.user_id


def _approval(caller: Caller, session: Session) -> Approval:
    # What the token says, should the session have proved more since.
    acr = Acr.AAL2 if caller.acr == Acr.AAL2 else Acr.AAL1
    since = caller.auth_time or session.auth_time
    return Approval(session.user_id, session.id, session.amr, acr, since)


def _wait(kind: type[Refusal], login: DeviceLogin) -> Refusal:
    seconds = login.interval_seconds
    return kind(metadata={"interval": str(seconds)}, retry_after=float(seconds))


def _approved(user: User, login: DeviceLogin, now: datetime) -> Mail:
    said = {"client": login.client_name, "address": login.address, "at": now.isoformat()}
    return Mail("device_approved", user.email, said, about=user.id)
