"""
`python -m chassis.health [HOST:PORT]` ends with 0 if the gRPC server there says SERVING.

Without an address it asks on this host for each room's usual port: in a container one room runs.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.settings import ROOM_PORTS

SECONDS = 2.0


def is_serving(address: str) -> bool:
    """Asks grpc.health.v1 for the whole server."""
    # A proxy of the environment is never meant for a health check.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main(arguments: list[str]) -> None:
    addresses = arguments or [f"127.0.0.1:{port}" for port in ROOM_PORTS.values()]
    if not any(map(is_serving, addresses)):
        sys.exit(f"Nothing serves on {', '.join(addresses)}.")


if __name__ == "__main__":
    main(sys.argv[1:])
