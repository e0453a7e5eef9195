"""How often a server says it succeeded: its Prometheus counters, and the rows it wrote."""

import asyncio
import re
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import asyncpg

from benchmarks.bed import Place

Connection: TypeAlias = "asyncpg.Connection[Any]"
# A proxy of the environment is never meant for a port of this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class CountError(Exception):
    """Two counts of one thing differ."""


class Counter(Protocol):
    """Something that only grows."""

    async def read(self, conn: Connection) -> int:
        """Returns how much it is now."""
        ...


@dataclass(frozen=True, slots=True)
class Handled:
    """Calls of a method that a service answered with OK."""

    place: Place
    method: str

    async def read(self, conn: Connection) -> int:
        return await handled(self.place, self.method)


@dataclass(frozen=True, slots=True)
class Answered:
    """Checks that the peer of ValidateToken answered with success."""

    place: Place

    async def read(self, conn: Connection) -> int:
        return int(await asyncio.to_thread(_get, self.place.metrics))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table."""

    table: str

    async def read(self, conn: Connection) -> int:
        return int(await conn.fetchval(f"SELECT count(*) FROM {self.table}"))  # noqa: S608


async def handled(place: Place, method: str) -> int:
    """Returns how many calls of a method the service answered with OK."""
    text = await asyncio.to_thread(_get, place.metrics)
    labels = rf'grpc_code="OK",grpc_method="{method}",[^}}]*'
    found = re.search(rf"^grpc_server_handled_total{{{labels}}} (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


async def audit(conn: Connection) -> None:
    """Raises CountError unless every account, entry, draw, hold, grant and hourly sum agrees."""
    for what, query in _DIFFERENCES.items():
        differing = await conn.fetchval(f"SELECT count(*) FROM ({query}) AS differing")  # noqa: S608
        if differing:
            raise CountError(f"{differing} accounts disagree with {what}")


def _get(url: str) -> str:
    with _OPENER.open(url, timeout=10) as answer:
        return str(answer.read().decode())


# Each names users of whom something differs from what the account says.
_SUM = "SELECT user_id, sum({amount}) AS total FROM {table} GROUP BY user_id"
_DIFFERS = (
    "SELECT a.user_id FROM {accounts} a LEFT JOIN ({sums}) s USING (user_id)"
    " WHERE {said} <> coalesce(s.total, 0)"
)


def _differences(accounts: str, said: str, table: str, amount: str) -> str:
    sums = _SUM.format(amount=amount, table=table)
    return _DIFFERS.format(accounts=accounts, sums=sums, said=said)


_DRAWS = (
    "(SELECT e.user_id, d.amount FROM credit_entries e, unnest(e.drawn) AS d (amount)"
    " WHERE e.kind IN ('use', 'reserve', 'commit', 'release'))"
)
_HELD = "(SELECT user_id, amount FROM credit_reservations WHERE state = 'open')"
_AVAILABLE = "a.granted - a.used - a.reserved"
_DIFFERENCES = {
    "tool_usage": _differences("credit_accounts", "a.used", "tool_usage", "credits_used"),
    "usage_rollups": _differences("credit_accounts", "a.used", "usage_rollups", "credits"),
    "credit_entries": _differences("credit_accounts", _AVAILABLE, "credit_entries", "amount"),
    "draws": _differences("credit_accounts", "a.used + a.reserved", f"{_DRAWS} AS x", "amount"),
    "credit_reservations": _differences("credit_accounts", "a.reserved", f"{_HELD} AS x", "amount"),
    "credit_grants": _differences("credit_accounts", _AVAILABLE, "credit_grants", "remaining"),
    "peer_usage": _differences("peer_accounts", "a.used", "peer_usage", "credits_used"),
}
