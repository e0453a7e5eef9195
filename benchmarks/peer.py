"""
The peer: metered usage as a good engineer of FastAPI and SQLAlchemy would write it.

    DATABASE_URL=... python -m benchmarks.peer PORT PROCESSES CONNECTIONS

One transaction a call: insert the event once, take its credits if they are there.
It keeps no ledger entries, draws or hourly sums and checks no caller, so it does less
than RecordUsage does.
"""

import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy import DateTime, make_url, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Same columns, keys, checks, indexes, foreign keys and fill factor as the suite's tables; not
# partitioned.
SCHEMA = """
CREATE TABLE peer_accounts (LIKE credit_accounts INCLUDING ALL,
    FOREIGN KEY (user_id) REFERENCES users (id)) WITH (fillfactor = 80);
CREATE TABLE peer_usage (LIKE tool_usage INCLUDING ALL,
    FOREIGN KEY (user_id) REFERENCES users (id));
"""


class Base(DeclarativeBase):
    """The tables."""

    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's way


class Account(Base):
    """A user's credits."""

    __tablename__ = "peer_accounts"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    granted: Mapped[int]
    used: Mapped[int]
    reserved: Mapped[int]
    overdraft_limit: Mapped[int]
    version: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Usage(Base):
    """A recorded tool call."""

    __tablename__ = "peer_usage"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    tool_name: Mapped[str]
    credits_used: Mapped[int]
    timestamp: Mapped[datetime]
    entry_id: Mapped[UUID | None]


class Event(BaseModel):
    """A tool call to record."""

    event_id: UUID
    user_id: UUID
    tool_name: str = Field(pattern=r"^[A-Za-z0-9._:/-]{1,100}$")
    credits: int = Field(ge=0, le=1_000_000)


class Recorded(BaseModel):
    """What became of it."""

    duplicate: bool
    available: int


_AVAILABLE = Account.granted - Account.used - Account.reserved


async def _session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


async def record(event: Event, session: Annotated[AsyncSession, Depends(_session)]) -> Recorded:
    """Records a tool call once and spends its credits."""
    async with session.begin():
        if not await _insert(session, event):
            return Recorded(duplicate=True, available=await _repeated(session, event))
        available = await _spend(session, event)
        if available is None:
            # Takes the row back as well.
            raise HTTPException(402, "The balance is smaller than the event's credits.")
    return Recorded(duplicate=False, available=available)


async def _insert(session: AsyncSession, event: Event) -> bool:
    statement = (
        insert(Usage)
        .values(
            id=event.event_id,
            user_id=event.user_id,
            tool_name=event.tool_name,
            credits_used=event.credits,
            timestamp=datetime.fromtimestamp((event.event_id.int >> 80) / 1000, UTC),
        )
        .on_conflict_do_nothing(index_elements=[Usage.id])
        .returning(Usage.id)
    )
    return await session.scalar(statement) is not None


async def _spend(session: AsyncSession, event: Event) -> int | None:
    statement = (
        update(Account)
        .where(
            Account.user_id == event.user_id,
            _AVAILABLE + Account.overdraft_limit >= event.credits,
        )
        .values(
            used=Account.used + event.credits,
            version=Account.version + 1,
            updated_at=datetime.now(UTC),
        )
        .returning(_AVAILABLE)
        .execution_options(synchronize_session=False)
    )
    return await session.scalar(statement)


async def _repeated(session: AsyncSession, event: Event) -> int:
    same = await session.scalar(
        select(Usage.id).where(
            Usage.id == event.event_id,
            Usage.user_id == event.user_id,
            Usage.tool_name == event.tool_name,
            Usage.credits_used == event.credits,
        )
    )
    if same is None:
        raise HTTPException(409, "This event id was used before for another event.")
    statement = select(_AVAILABLE).where(Account.user_id == event.user_id)
    return await session.scalar(statement) or 0


def application() -> FastAPI:
    """Returns the service over a pool of its own; uvicorn calls it in each of its processes."""
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg", query={})
    engine = create_async_engine(url, pool_size=int(os.environ["PEER_POOL"]), max_overflow=0)
    app = FastAPI()
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.post("/v1/usage")(record)
    return app


def serve(factory: str, port: int, *, processes: int) -> None:
    """Serves an application as fast as uvicorn does."""
    uvicorn.run(
        factory,
        factory=True,
        workers=processes,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        # A connection waits longer than the default where the machine is busy.
        timeout_keep_alive=60,
        access_log=False,
        log_level="warning",
    )


def main() -> None:
    port, processes, pool_size = map(int, sys.argv[1:])
    os.environ["PEER_POOL"] = str(pool_size // processes)
    serve("benchmarks.peer:application", port, processes=processes)


if __name__ == "__main__":
    main()
