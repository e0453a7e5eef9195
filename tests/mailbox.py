"""What waits in the outbox for somebody, and the secrets that its mail will carry."""

from dataclasses import dataclass
from uuid import UUID

from chassis.postgres import Connection
from services.auth.domain import one_time
from tests.running import derive


@dataclass(frozen=True, slots=True)
class Sent:
    """The newest mail of a kind to an address."""

    row_id: UUID
    key: bytes

    @property
    def secret(self) -> str:
        """The secret of its link."""
        return one_time.secret_of(self.key, self.row_id)

    @property
    def code(self) -> str:
        return one_time.code_of(self.key, self.row_id)

    @property
    def wrong_code(self) -> str:
        """A code that it does not carry."""
        return f"{(int(self.code) + 1) % 10**one_time.CODE_DIGITS:0{one_time.CODE_DIGITS}}"


async def newest(owner: Connection, template: str, to: str, key: bytes | None = None) -> Sent:
    """Returns the newest mail; `key` is the running rooms' unless it is given."""
    row_id = await owner.fetchval(
        "SELECT payload->>'one_time' FROM auth_outbox WHERE topic = 'mail'"
        " AND payload->>'template' = $1 AND payload->>'to' = $2 ORDER BY id DESC LIMIT 1",
        template,
        to,
    )
    assert row_id, f"no mail {template} to {to}"
    return Sent(UUID(row_id), key or derive(one_time.PURPOSE))


async def templates(owner: Connection, to: str) -> list[str]:
    """Returns which mails an address was sent, oldest first."""
    rows = await owner.fetch(
        "SELECT payload->>'template' AS template FROM auth_outbox WHERE topic = 'mail'"
        " AND payload->>'to' = $1 ORDER BY id",
        to,
    )
    return [row["template"] for row in rows]
