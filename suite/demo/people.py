"""The three users of the story, and what they do over JSON."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from suite.demo.client import Gateway, Json, Refused
from suite.errors import SuiteError

NAMES = ("ada", "grace", "linus")
_OPEN_SECONDS = 15.0
_PAGE = 1000


@dataclass(slots=True)
class Person:
    """A user with an account of their own, new in every telling."""

    name: str
    email: str
    password: str
    user_id: str = ""
    token: str = ""
    """An access token, good for 15 minutes."""


def cast() -> list[Person]:
    """Returns three people nobody has met before."""
    mark = secrets.token_hex(3)
    return [Person(name, f"{name}-{mark}@example.com", secrets.token_urlsafe(12)) for name in NAMES]


def register(gateway: Gateway, person: Person) -> None:
    """Makes the account; the person knows its id from then on."""
    body = {"email": person.email, "password": person.password}
    person.user_id = gateway.post("/v1/users", body)["user"]["user_id"]


def login(gateway: Gateway, person: Person) -> Json:
    """Opens a session, keeps its access token and returns the answer."""
    body = {"email": person.email, "password": person.password}
    answer = gateway.post("/v1/sessions", body)
    person.token = answer["tokens"]["access_token"]
    return answer


def wait_for_account(gateway: Gateway, person: Person) -> int:
    """Returns the credits of the new account; SuiteError if it does not open."""
    deadline = time.monotonic() + _OPEN_SECONDS
    while True:
        try:
            return balance(gateway, person)["available"]
        except Refused as refused:
            if refused.reason != "ACCOUNT_NOT_OPEN":
                raise
        if time.monotonic() > deadline:
            raise SuiteError(
                f"{person.name}'s account did not open within {_OPEN_SECONDS:.0f} s: see"
                " `finity status` for what waits in the outbox."
            )
        time.sleep(0.05)


def balance(gateway: Gateway, person: Person) -> dict[str, int]:
    """Returns "available", "granted" and "used"."""
    answer = gateway.get("/v1/users/me/balance", person.token)["balance"]
    # int64 travels as a string in JSON.
    return {key: int(answer[key]) for key in ("available", "granted", "used")}


def usage_times(gateway: Gateway, person: Person) -> Iterator[datetime]:
    """Yields the time of every recorded tool call, newest first, page by page."""
    token = ""
    while True:
        query: dict[str, str | int] = {"page_size": _PAGE}
        page = gateway.get(
            "/v1/users/me/usage", person.token, **query | ({"page_token": token} if token else {})
        )
        for record in page["records"]:
            yield datetime.fromisoformat(record["event_time"])
        token = page["next_page_token"]
        if not token:
            return
