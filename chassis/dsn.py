"""DATABASE_URL as the product writes it: Prisma's parameters taken out and translated."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

DEFAULT_POOL_SIZE = 10
DEFAULT_ACQUIRE_SECONDS = 20.0
_PRISMA = {"schema", "connection_limit", "pool_timeout", "connect_timeout", "pgbouncer"}
# Prisma's own knobs that mean nothing here and that the server would refuse.
_IGNORED = {"statement_cache_size", "socket_timeout", "max_idle_connection_lifetime", "sslaccept"}


class DatabaseError(Exception):
    """The database cannot be used; the message says what to change."""


class DsnError(DatabaseError, ValueError):
    """DATABASE_URL makes no sense; the message names the part."""


@dataclass(frozen=True, slots=True)
class Dsn:
    """A DATABASE_URL, Prisma's parameters taken out and translated."""

    url: str
    """What asyncpg may see."""
    schema: str = "public"
    pool_size: int = DEFAULT_POOL_SIZE
    acquire_seconds: float = DEFAULT_ACQUIRE_SECONDS
    connect_seconds: float = 10.0
    pgbouncer: bool = False

    @property
    def search_path(self) -> str:
        """The schema as a setting, quoted so that capitals survive."""
        return '"' + self.schema.replace('"', '""') + '"'

    @property
    def place(self) -> str:
        """host:port/database, for a sentence: no user, no password."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port or 5432}{parts.path}"


def parse_dsn(url: str) -> Dsn:
    """Reads a DATABASE_URL; DsnError, naming the parameter, for one that makes no sense."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise DsnError("DATABASE_URL must start with postgresql://")
    try:
        _ = parts.port
    except ValueError as error:
        raise DsnError("DATABASE_URL: the port must be a number up to 65535") from error
    given = parse_qsl(parts.query, keep_blank_values=True)
    prisma = {name: value for name, value in given if name in _PRISMA}
    rest = [(name, value) for name, value in given if name not in _PRISMA | _IGNORED]
    return Dsn(
        url=urlunsplit(parts._replace(query=urlencode(rest))),
        schema=prisma.get("schema") or "public",
        pool_size=int(_number(prisma, "connection_limit", DEFAULT_POOL_SIZE)),
        acquire_seconds=_number(prisma, "pool_timeout", DEFAULT_ACQUIRE_SECONDS),
        connect_seconds=_number(prisma, "connect_timeout", 10.0),
        pgbouncer=prisma.get("pgbouncer") == "true",
    )


def _number(parameters: dict[str, str], name: str, default: float) -> float:
    try:
        value = float(parameters.get(name, default))
    except ValueError:
        value = 0
    if not 0 < value < float("inf") or (name == "connection_limit" and value < 1):
        raise DsnError(f"DATABASE_URL: {name} must be a positive number")
    return value
