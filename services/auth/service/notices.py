"""What other rooms have to say to a user, by mail."""

from collections.abc import Mapping
from uuid import UUID

from chassis import idempotency
from chassis.idempotency import Key
from services.auth.service.mail import Mail, enqueue
from services.auth.service.room import KEYS, Room
from services.auth.store import users

# Template of the notice.
USAGE_THRESHOLD = "usage_threshold"


class NoticeService:
    """Mail that another room has caused."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def notify(
        self, user_id: UUID, template: str, values: Mapping[str, str], key: Key | None
    ) -> bool:
        """Mails a user once per key; False if nobody may be written to."""
        now = self._room.clock.now()
        async with self._room.database.transaction() as conn:

            async def effect() -> bool:
                # Locked: an account that is erased meanwhile must not leave a mail behind.
                user = await users.lock_user(conn, user_id)
                if user is None or user.erased_at is not None or user.banned(now):
                    return False
                # Whoever reads an address nobody verified may be somebody else.
                if user.email_verified_at is None:
                    return False
                said = {**values, "at": now.isoformat()}
                mail = Mail(template, user.email, said, about=user.id)
                await enqueue(conn, mail, now)
                return True

            sent = await idempotency.once(conn, KEYS, key, bool, effect, now=now)
        self._room.wake_relay()
        return sent
