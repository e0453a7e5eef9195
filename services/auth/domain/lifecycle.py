"""The end of an account: what an erased one is called, and the document of its owner's data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

# Of each kind of record: with all of them the document stays below gRPC's 4 MiB.
EXPORTED_RECORDS = 5000


@dataclass(frozen=True, slots=True)
class Export:
    """Everything the room holds about a user, for a person to keep."""

    filename: str
    data: Mapping[str, Any]
    """What JSON can say: objects, lists, texts, numbers, true, false and null."""


def erased_email(random: UUID) -> str:
    """
    Returns the address of an erased account; no mail can ever reach it (RFC 2606 section 2).

    `random` is not the user's id: an address that can be told in advance could be
    taken in advance, and then nobody could be erased.
    """
    return f"erased-{random}@erased.invalid"


def export_filename(user_id: UUID, now: datetime) -> str:
    return f"finity-{user_id}-{now:%Y-%m-%d}.json"


def sign_in_methods(account: Mapping[str, Any]) -> list[str]:
    """Returns how an exported account can sign in by what is in its own row."""
    methods = ["password"] if account["has_password"] else []
    provider = account["oauth_provider"]
    return [*methods, provider] if provider else methods
