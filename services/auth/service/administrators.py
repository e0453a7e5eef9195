"""Who may act as an administrator now, whatever its token says."""

from datetime import datetime
from uuid import UUID

from chassis.callers import Caller, Kind
from chassis.postgres import Connection
from chassis.refusals import AccessDenied
from services.auth.service.step_up import require_fresh
from services.auth.store import users


async def lock_admins(conn: Connection, caller: Caller, now: datetime) -> list[UUID]:
    """
    Locks the administrators, before any other row, and returns them.

    AccessDenied for a user who is none any more, StepUpRequired for one without a
    fresh proof of who is there. A service is let through: what it may not do to
    administrators is its use case's to say.
    """
    admins = await users.lock_admins(conn, now)
    if caller.kind is Kind.SERVICE:
        return admins
    # Demoted or banned, perhaps, while this call waited.
    admin = await users.get_user(conn, caller.user_id) if caller.user_id in admins else None
    if admin is None:
        raise AccessDenied
    require_fresh(caller, admin, now)
    return admins
