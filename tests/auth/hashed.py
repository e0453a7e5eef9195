"""Looking at what is hashed."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from nacl.pwhash import argon2id

from services.auth.passwords import Passwords

T = TypeVar("T")


def spied(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes them work in this process; returns the list of hashes that libsodium verifies."""
    verified: list[str] = []
    verify = argon2id.verify

    def spy(hashed: bytes, password: bytes) -> bool:
        verified.append(hashed.decode())
        return verify(hashed, password)

    async def here(work: Callable[..., T], *arguments: object) -> T:
        return work(*arguments)

    monkeypatch.setattr(argon2id, "verify", spy)
    monkeypatch.setattr(passwords, "_run", here)
    return verified
