"""
Idempotency keys: the same key and the same request get the first answer again.

The key is stored in the effect's own transaction, per caller and method. A
second call with the key waits for the first one's commit, then finds its answer;
if the first one was rolled back, the second one does the work. Keys are kept 72
hours: a client may come back after a weekend.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from pydantic import TypeAdapter

from chassis.calls import current_call
from chassis.postgres import Connection
from chassis.refusals import Conflict, IdempotencyKeyReused

KEPT = timedelta(hours=72)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key with all it is compared by."""

    caller: str
    method: str
    key: str
    fingerprint: bytes
    """HMAC of the request; of no use to whoever reads the table, passwords included."""


def key_of(request: Message, secret: bytes, *, owner: str = "") -> Key | None:
    """
    Returns the key of the call being answered, or None if its request carries none.

    `owner` parts the keys of callers that nobody can tell apart, those of PUBLIC methods.
    """
    key = str(getattr(request, "idempotency_key", ""))
    if not key:
        return None
    call = current_call()
    encoded = request.SerializeToString(deterministic=True)
    fingerprint = hmac.digest(secret, encoded, hashlib.sha256)
    caller = call.caller.key
    if owner:
        caller += ":" + hmac.digest(secret, owner.encode(), hashlib.sha256)[:16].hex()
    return Key(caller, call.method.path, key, fingerprint)


async def once(
    conn: Connection,
    table: str,
    key: Key | None,
    kind: type[T],
    effect: Callable[[], Awaitable[T]],
    *,
    now: datetime,
) -> T:
    """
    Runs `effect` once per key and returns its first answer, a `kind`, ever after.

    Without a key it just runs. IdempotencyKeyReused if the key came with another request.
    """
    if key is None:
        return await effect()
    claimed = await conn.fetchval(
        f"INSERT INTO {table} (caller, method, key, fingerprint, created_at)"
        " VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (caller, method, key) DO NOTHING RETURNING true",
        key.caller,
        key.method,
        key.key,
        key.fingerprint,
        now,
    )
    if not claimed:
        return await _replay(conn, table, key, kind)
    answer = await effect()
    await conn.execute(
        f"UPDATE {table} SET answer = $4 WHERE caller = $1 AND method = $2 AND key = $3",
        key.caller,
        key.method,
        key.key,
        _adapter(kind).dump_json(answer).decode(),
    )
    return answer


async def forget(conn: Connection, table: str, now: datetime) -> int:
    """Deletes up to 1,000 keys that are older than 72 hours; returns how many."""
    deleted = await conn.fetchval(
        f"WITH old AS (SELECT ctid FROM {table} WHERE created_at < $1"
        " ORDER BY created_at LIMIT 1000 FOR UPDATE SKIP LOCKED),"
        f" gone AS (DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM old) RETURNING 1)"
        " SELECT count(*) FROM gone",
        now - KEPT,
    )
    return int(deleted)


async def _replay(conn: Connection, table: str, key: Key, kind: type[T]) -> T:
    row = await conn.fetchrow(
        f"SELECT fingerprint, answer FROM {table} WHERE caller = $1 AND method = $2 AND key = $3",
        key.caller,
        key.method,
        key.key,
    )
    if row is None:
        # Swept in this very moment; the same call again finds the key free.
        raise Conflict
    if not hmac.compare_digest(row["fingerprint"], key.fingerprint):
        raise IdempotencyKeyReused
    return _adapter(kind).validate_json(row["answer"])


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]
