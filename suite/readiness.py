"""When a process of the suite may be used, and whether a server somebody else runs answers."""

import asyncio
import http.client

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.dsn import Dsn, parse_dsn
from suite import ports
from suite.errors import SuiteError

CONNECT_SECONDS = 5.0
# A proxy of the environment is never meant for a port of this machine.
_CHANNEL = [("grpc.enable_http_proxy", 0)]


def is_serving(pid: int, address: str) -> bool:
    """Whether the gRPC server of this very process says SERVING (grpc.health.v1)."""
    host, _, port = address.rpartition(":")
    # Asked first: a channel that failed once waits a second before it tries again.
    if not ports.is_listening(pid, int(port)) or not ports.answers(int(port), host):
        return False
    with grpc.insecure_channel(address, options=_CHANNEL) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=2.0
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_healthy(pid: int, host: str, port: int) -> bool:
    """Whether GET /healthz of this very process answers 200."""
    if not ports.is_listening(pid, port):
        return False
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def require_database(url: str) -> str:
    """Returns the server's version; SuiteError, naming DATABASE_URL, if it does not answer."""
    try:
        return asyncio.run(_server_version(parse_dsn(url)))
    except ValueError as error:
        raise SuiteError(f"{error}.") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise SuiteError(
            f"DATABASE_URL does not lead to a database that answers: {_reason(error)}."
            " Correct it, or unset it to use the embedded PostgreSQL."
        ) from error


def require_redis(url: str) -> None:
    """Raises SuiteError, naming REDIS_URL, if the server does not answer."""
    import redis  # noqa: PLC0415 - a third of a second that most commands need not wait

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise SuiteError(
            f"REDIS_URL does not lead to a server that answers: {_reason(error)}."
            " Correct it, or unset it to use the embedded Valkey."
        ) from error


async def _server_version(dsn: Dsn) -> str:
    connection = await asyncpg.connect(dsn.url, timeout=CONNECT_SECONDS)
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


def _reason(error: Exception) -> str:
    """One line, without the full stop that some drivers write."""
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
