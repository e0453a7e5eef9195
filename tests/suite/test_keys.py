"""`finity keys`: a person rotates the signing key of a running auth service."""

from pathlib import Path

from finity.auth.v1 import auth_pb2, auth_pb2_grpc
from grpc import aio

from suite.ports import free_port
from tests.factories import start_process
from tests.running import SERVICE_KEY
from tests.suite.terminal import finity

ROTATE = ("keys", "rotate", "--reason", "test")


async def test_a_key_is_rotated_and_listed(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The new key waits, the old one signs; a second rotation finds the first under way."""
    port = free_port()
    settings = {
        "DATABASE_URL": database_url,
        "FINITY_AUTH_ADDRESS": f"127.0.0.1:{port}",
        "FINITY_SERVICE_KEY": SERVICE_KEY,
    }
    process = await start_process("auth", database_url, redis_url, {}, port=port)
    try:
        async with aio.insecure_channel(settings["FINITY_AUTH_ADDRESS"]) as channel:
            await auth_pb2_grpc.AuthServiceStub(channel).GetSigningKeys(
                auth_pb2.GetSigningKeysRequest(), wait_for_ready=True, timeout=30
            )
        first = finity(tmp_path, *ROTATE, **settings)
        second = finity(tmp_path, *ROTATE, **settings)
        listed = finity(tmp_path, "keys", "list", **settings)
        refused = finity(tmp_path, *ROTATE, **{**settings, "FINITY_SERVICE_KEY": "fsk_wrong"})
    finally:
        process.child.terminate()
        await process.finish()
    kid, _, said = first.stdout.partition(" ")
    assert said.startswith("is published and signs from "), first
    assert second.stdout.startswith(f"{kid} waits already "), second
    rows = [line.split()[:2] for line in listed.stdout.splitlines()[1:]]
    assert rows[0] == [kid, "waits"], listed
    assert [state for _, state in rows] == ["waits", "signs"]
    assert refused.returncode == 1
    assert "made no key" in refused.stderr


def test_without_a_suite_it_says_what_to_set(tmp_path: Path) -> None:
    """Both commands end in a sentence where there is nothing to talk to."""
    assert "FINITY_AUTH_ADDRESS" in finity(tmp_path, *ROTATE).stderr
    assert "DATABASE_URL" in finity(tmp_path, "keys", "list").stderr
