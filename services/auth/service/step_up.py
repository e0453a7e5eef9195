"""Sensitive actions need a fresh proof of who is there (RFC 9470)."""

from datetime import datetime

from chassis.callers import Caller
from chassis.postgres import Connection
from services.auth.domain.sessions import (
    STEP_UP_AGE,
    Acr,
    Session,
    SessionPolicy,
    over,
    step_up_needed,
)
from services.auth.domain.users import User
from services.auth.errors import (
    EmailNotVerified,
    ImpersonationDenied,
    SessionEnded,
    StepUpRequired,
)
from services.auth.store import sessions

STEP_UP_SECONDS = str(int(STEP_UP_AGE.total_seconds()))


def require_fresh(caller: Caller, user: User, now: datetime) -> None:
    """
    StepUpRequired unless the caller proved lately, and strongly enough, that it is the user.

    ImpersonationDenied for somebody else who acts as the user.
    """
    refuse_impersonation(caller)
    mfa = user.mfa_enabled_at is not None
    auth_time = caller.auth_time
    if auth_time is None or step_up_needed(auth_time, caller.acr, mfa=mfa, now=now):
        acr = Acr.AAL2 if mfa else Acr.AAL1
        raise StepUpRequired(metadata={"acr_values": acr, "max_age": STEP_UP_SECONDS})


async def require_living(
    conn: Connection, caller: Caller, policy: SessionPolicy, now: datetime
) -> Session:
    """
    Returns the caller's session; SessionEnded if it is over, whatever its token still says.

    What ends an account's sessions locks it: under the same lock either this sees
    that, or that sees what is written next.
    """
    session = await sessions.get_session(conn, caller.session_id) if caller.session_id else None
    why = over(session, policy, now) if session else ""
    if session is None or why is not None:
        raise SessionEnded(metadata={"end_reason": why or ""})
    return session


def require_verified(user: User) -> None:
    """
    EmailNotVerified unless the address is the account's beyond doubt; the account is locked.

    Whoever registers somebody else's address must leave no way in that is still
    there when its owner comes.
    """
    if user.email_verified_at is None:
        raise EmailNotVerified


def refuse_impersonation(caller: Caller) -> None:
    """ImpersonationDenied for an administrator who acts as somebody else."""
    if caller.actor is not None:
        raise ImpersonationDenied
