"""
The peer of ValidateToken: a session check as a good engineer of FastAPI would write it.

    DATABASE_URL=... python -m benchmarks.peer_check PORT CONNECTIONS JWKS_URL

PyJWT checks the same token against the same key, loaded once; SQLAlchemy looks whether
its session still lives. That is what makes a logout hold, as it does in ValidateToken.
"""

import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.peer import serve
from chassis.tokens import ALGORITHM, AUDIENCE


class Base(DeclarativeBase):
    """The tables."""


class Session(Base):
    """A session, as far as a check reads it."""

    __tablename__ = "sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    end_reason: Mapped[str | None]


class Presented(BaseModel):
    """A token to check."""

    token: str


class Checked(BaseModel):
    """What it says."""

    active: bool
    user_id: UUID
    session_id: UUID
    role: str


async def _session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


async def check(
    presented: Presented, request: Request, session: Annotated[AsyncSession, Depends(_session)]
) -> Checked:
    """Checks a token's signature, lifetime and session."""
    state = request.app.state
    try:
        claims = jwt.decode(
            presented.token,
            state.keys[jwt.get_unverified_header(presented.token)["kid"]],
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
        )
    except (jwt.PyJWTError, KeyError) as error:
        raise HTTPException(401, "The token is not good.") from error
    session_id = UUID(claims["sid"])
    living = select(Session.user_id).where(Session.id == session_id, Session.end_reason.is_(None))
    user_id = await session.scalar(living)
    if user_id is None:
        raise HTTPException(401, "The session is over.")
    state.answered += 1
    return Checked(active=True, user_id=user_id, session_id=session_id, role=claims["role"])


async def answered(request: Request) -> int:
    """Says how many checks succeeded: the count the benchmark reads."""
    return int(request.app.state.answered)


def application() -> FastAPI:
    """Returns the service; uvicorn calls it."""
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg", query={})
    engine = create_async_engine(url, pool_size=int(os.environ["PEER_POOL"]), max_overflow=0)
    with urllib.request.urlopen(os.environ["PEER_JWKS"], timeout=10) as answer:  # noqa: S310
        keys = json.load(answer)["keys"]
    app = FastAPI()
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.keys = {key["kid"]: jwt.PyJWK(key) for key in keys}
    app.state.answered = 0
    app.post("/v1/tokens:validate")(check)
    app.get("/answered")(answered)
    return app


def main() -> None:
    port, pool_size, jwks = sys.argv[1:]
    os.environ["PEER_POOL"] = pool_size
    os.environ["PEER_JWKS"] = jwks
    serve("benchmarks.peer_check:application", int(port), processes=1)


if __name__ == "__main__":
    main()
