"""The embedded Valkey: a password, a port of its own, nothing kept."""

from pathlib import Path

import pytest
import redis

from suite import ports, state
from suite.valkey import EmbeddedValkey


def test_answers_with_its_password_alone_and_keeps_its_port(directory: Path) -> None:
    server = EmbeddedValkey(directory)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
            assert client.get("key") == b"value"
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        port = server.port
        server.stop()
        server.start()
        assert server.port == port
        with redis.Redis.from_url(server.url) as client:
            assert client.get("key") is None
    finally:
        server.stop()


def test_its_secrets_are_its_owners_alone(directory: Path) -> None:
    server = EmbeddedValkey(directory)
    server.start()
    server.stop()
    for name in ("valkey.conf", "valkey.json"):
        assert (directory / name).stat().st_mode & 0o077 == 0


def test_two_run_beside_each_other(directory: Path) -> None:
    first = EmbeddedValkey(directory)
    with state.scratch() as other:
        first.start()
        state.write(other / "valkey.json", {"port": first.port})
        second = EmbeddedValkey(other)
        second.start()
        try:
            assert first.port != second.port
            assert not ports.is_free(first.port)
            assert not ports.is_free(second.port)
        finally:
            second.stop()
            first.stop()
