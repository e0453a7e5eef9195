"""Programs started as another user while gRPC works in this process: how PostgreSQL is, as root."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from suite.state import ROOT

# In a process of its own: gRPC takes its setting once. It says on stderr when it meets a fork.
FORKS_UNDER_LOAD = """
import os, pwd, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
if sys.argv[1] == "with suite":
    import suite
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

server = grpc.server(ThreadPoolExecutor(4))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
forked = threading.Event()

def call():
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not forked.is_set():
            stub.Check(health_pb2.HealthCheckRequest(), timeout=5)

threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads:
    thread.start()
nobody = pwd.getpwnam("nobody")
for _ in range(50):
    subprocess.run(["/bin/true"], user=nobody.pw_uid, extra_groups=[], check=False)
forked.set()
for thread in threads:
    thread.join()
server.stop(None).wait()
"""


def meets_forks(mode: str) -> bool:
    """Whether gRPC wrote that it met a fork. After that the script may hang, so it is ended."""
    environment = os.environ | {"GRPC_VERBOSITY": "INFO"}
    environment.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", FORKS_UNDER_LOAD, mode],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        assert script.stderr is not None
        try:
            met = any("fork() handlers" in line for line in script.stderr)
            assert met or script.wait() == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)
    return met


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a program as another user")
def test_no_fork_handler_of_grpc_runs_in_a_program_started_as_another_user() -> None:
    assert meets_forks("without suite")
    assert not meets_forks("with suite")
