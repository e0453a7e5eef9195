"""
PostgreSQL: the DSN, the pool, the one transaction of a use case, and what a driver's error means.

No driver text, SQL or SQLSTATE leaves the process: an error becomes a refusal by
its kind, or a defect.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeAlias

import asyncpg

from chassis.dsn import DatabaseError, Dsn, parse_dsn
from chassis.errors import Refusal
from chassis.refusals import Conflict, DatabaseUnavailable, InvalidRequest

# The stubs call a connection from a pool by another name; both are the same to a query.
Connection: TypeAlias = Any
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

IDLE_SECONDS = 600.0
# No statement of a request is worth more; sweepers and migrations set their own.
STATEMENT_TIMEOUT_MS = 10_000
# Longer than any flush holds an account; a caller would rather try again than wait more.
LOCK_TIMEOUT_MS = 1_000
# Bounds everything done on one connection, above the statement's own limit.
TRANSACTION_SECONDS = 15.0
ROLLBACK_SECONDS = 1.0
_RETRY_AFTER = 0.5
_COLLIDED = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
# The server, the way to it or its disk: whoever sends the call again may find it well.
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
    EOFError,
    TimeoutError,
)
# text and jsonb hold every character but NUL.
_UNSTORABLE = (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)


class Database:
    """A pool of connections that all act as one role."""

    def __init__(self, pool: Pool, acquire_seconds: float, per_transaction: str = "") -> None:
        """`per_transaction` is SQL for what a session behind PgBouncer cannot keep."""
        self._pool = pool
        self._acquire_seconds = acquire_seconds
        self._per_transaction = per_transaction

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """
        A connection for reads, or for one statement that commits by itself.

        DatabaseUnavailable when none comes or answers in time.
        """
        if self._per_transaction:
            async with self.transaction() as connection:
                yield connection
            return
        async with self._acquired() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def transaction(self, *, lock_ms: int = LOCK_TIMEOUT_MS) -> AsyncIterator[Connection]:
        """
        The one transaction of a use case: committed at the end, rolled back by any exception.

        A row that somebody else holds for longer than `lock_ms` is a Conflict.
        """
        async with self._acquired() as connection:
            # The usual timeout is the connection's own; naming it would only cost time.
            patience = f" SET LOCAL lock_timeout = {lock_ms};" if lock_ms != LOCK_TIMEOUT_MS else ""
            await connection.execute(f"BEGIN;{self._per_transaction}{patience}")
            try:
                yield connection
                await connection.execute("COMMIT")
            except BaseException:
                await _roll_back(connection)
                raise

    @contextlib.asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        with refusing():
            connection = await self._pool.acquire(timeout=self._acquire_seconds)
            try:
                # statement_timeout is the server's; this holds when the server is not heard.
                async with asyncio.timeout(TRANSACTION_SECONDS):
                    yield connection
            finally:
                with contextlib.suppress(*_GONE):
                    await self._pool.release(connection, timeout=ROLLBACK_SECONDS)


async def _roll_back(connection: Connection) -> None:
    """Rolls back, or cuts a connection that does not answer: it would wait without end."""
    try:
        await asyncio.wait_for(connection.execute("ROLLBACK"), ROLLBACK_SECONDS)
    except (Exception, asyncio.CancelledError):  # noqa: BLE001 - the caller raises its own
        connection.terminate()


@contextlib.asynccontextmanager
async def open_database(
    url: str, *, role: str | None, application: str, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Database]:
    """
    Opens the pool; every connection acts as `role`, so that the room's grants hold.

    `settings` are parameters of the server that the room's statements want.
    """
    dsn = parse_dsn(url)
    own = {
        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
        "lock_timeout": str(LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(3 * STATEMENT_TIMEOUT_MS),
        "search_path": dsn.search_path,
        **({"role": role} if role else {}),
        **(settings or {}),
    }
    options: dict[str, Any] = {"server_settings": own | {"application_name": application}}
    per_transaction = ""
    if dsn.pgbouncer:
        # A session is shared there: no prepared statement and no setting outlives a transaction.
        options = {"statement_cache_size": 0}
        per_transaction = "".join(f" SET LOCAL {name} = {v};" for name, v in own.items())
    with connecting(dsn):
        pool = await asyncpg.create_pool(
            dsn.url,
            min_size=1,
            max_size=dsn.pool_size,
            max_inactive_connection_lifetime=IDLE_SECONDS,
            timeout=dsn.connect_seconds,
            reset=_nothing_to_reset,
            **options,
        )
    try:
        yield Database(pool, dsn.acquire_seconds, per_transaction)
    finally:
        # close() waits for a frozen server without end.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.close(), 3.0)
        pool.terminate()


async def _nothing_to_reset(_: Connection) -> None:
    """No code of ours changes a session; the default would cost a round trip per use."""


@contextlib.contextmanager
def connecting(dsn: Dsn) -> Iterator[None]:
    """Turns a failure to connect into a DatabaseError that names the setting, no password."""
    try:
        yield
    except asyncpg.InvalidParameterValueError as error:
        raise DatabaseError(f"{dsn.place} was never migrated; run `finity migrate`.") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseError(
            f"DATABASE_URL leads to {dsn.place}, which does not let us in"
            f" ({type(error).__name__}: {error})."
        ) from error


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns the driver's errors into refusals; what is not expected stays an exception."""
    try:
        yield
    except _COLLIDED as error:
        raise Conflict(retry_after=_RETRY_AFTER) from error
    except _GONE as error:
        raise DatabaseUnavailable(retry_after=_RETRY_AFTER) from error
    except _UNSTORABLE as error:
        raise InvalidRequest("A text of the request holds the character NUL.") from error


@contextlib.contextmanager
def on_constraint(name: str, refusal: type[Refusal]) -> Iterator[None]:
    """Turns the violation of one named constraint into one refusal."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        if error.constraint_name == name:
            raise refusal from error
        raise
