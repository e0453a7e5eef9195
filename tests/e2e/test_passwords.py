"""Passwords as a browser meets them: JSON through the gateway, the suite as processes."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from suite import state
from suite.addresses import free
from suite.credentials import DEVELOPER
from suite.stack import Stack
from tests.factories import an_address
from tests.running import PASSWORD
from tests.suite.terminal import finity, plain_environment

NEW = "a brand new passphrase"


@pytest.fixture(scope="module")
def stack(stores: dict[str, str]) -> Iterator[Stack]:
    """The suite as processes of its own, on a database of its own."""
    with state.scratch("finity passwords ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as running:
            yield running


def post(stack: Stack, path: str, token: str = "", **body: Any) -> tuple[int, dict[str, Any]]:
    """Sends JSON; returns the status and what came back."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    answer = httpx.post(f"{stack.gateway_url}{path}", json=body, headers=headers, timeout=30)
    return answer.status_code, answer.json()


def reason_of(body: dict[str, Any]) -> str:
    return str(body["details"][0]["reason"])


def test_a_password_s_life(stack: Stack) -> None:
    """An imported user learns what a password is worth, logs in and changes it."""
    email, salt = an_address(), b"sixteen bytes ok"
    raw = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, 10_000)
    hashed = "$".join(["", "pbkdf2-sha256", "i=10000", *map(spelled, (salt, raw))])
    users = [
        {"email": email, "email_verified": True, "password_hash": hashed},
        {"email": an_address(), "password_hash": "$1$md5"},
    ]
    key = stack.credentials.service_keys[DEVELOPER]
    status, body = post(stack, "/v1/users:import", key, users=users)
    assert (status, body["created"], body["rejected"]) == (200, 1, 1)
    assert body["results"][1]["rejection"] == "IMPORT_REJECTION_HASH_FORMAT_UNKNOWN"

    status, body = post(stack, "/v1/passwords:check", password="iloveyou", email=email)
    assert (status, body["score"], body["acceptable"]) == (200, 0, False)
    assert body["weakness"] == "PASSWORD_WEAKNESS_TOO_COMMON"
    status, body = post(stack, "/v1/users", email=an_address(), password="iloveyou")
    assert (status, reason_of(body)) == (400, "PASSWORD_TOO_WEAK")
    assert body["details"][0]["metadata"] == {"why": "too_common"}
    assert '"field": "password"' in json.dumps(body)

    status, body = post(stack, "/v1/sessions", email=email, password=PASSWORD)
    assert status == 200
    token = body["tokens"]["access_token"]
    wrong = {"current_password": "wrong horse", "new_password": NEW}
    status, body = post(stack, "/v1/passwords:change", token, **wrong)
    assert (status, reason_of(body)) == (403, "CURRENT_PASSWORD_WRONG")
    right = {"current_password": PASSWORD, "new_password": NEW}
    status, body = post(stack, "/v1/passwords:change", token, **right)
    assert (status, body) == (200, {"ended_sessions": 0})
    status, body = post(stack, "/v1/sessions", email=email, password=PASSWORD)
    assert (status, reason_of(body)) == (401, "LOGIN_FAILED")
    assert post(stack, "/v1/sessions", email=email, password=NEW)[0] == 200


def spelled(raw: bytes) -> str:
    return b64encode(raw).decode().rstrip("=")


def test_a_file_of_users(stack: Stack, tmp_path: Path) -> None:
    """`finity users import` brings those it can, names the others' lines, and may run again."""
    salt = b"sixteen bytes ok"
    raw = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, 10_000)
    hashed = "$".join(["", "pbkdf2-sha512", "i=10000", *map(spelled, (salt, raw))])
    people = [an_address() for _ in range(1200)]
    users = tmp_path / "users.csv"
    rows = [f"{email},pro,true,2020-01-31T09:30:00Z,{hashed}" for email in people]
    rows[7], rows[600] = f"{people[7]},king,,,", f"{people[600]},,,,$1$md5"
    users.write_text("\n".join(["email,role,email_verified,create_time,password_hash", *rows]))
    ended = finity(stack.directory, "users", "import", str(users))
    assert ended.returncode == 3, ended.stderr
    assert counted(ended.stdout) == {"created": 1198, "duplicates": 0, "rejected": 2}
    assert "UNREADABLE_LINE: role is free, pro or admin. first in line 9" in ended.stdout
    assert "HASH_FORMAT_UNKNOWN first in line 602" in ended.stdout
    assert hashed not in ended.stdout + ended.stderr
    ended = finity(stack.directory, "users", "import", str(users))
    assert counted(ended.stdout) == {"created": 0, "duplicates": 1198, "rejected": 2}
    status, body = post(stack, "/v1/sessions", email=people[3], password=PASSWORD)
    assert (status, body["user"]["role"]) == (200, "ROLE_PRO")
    assert body["user"]["create_time"] == "2020-01-31T09:30:00Z"

    objects = tmp_path / "users.jsonl"
    objects.write_text("".join(json.dumps({"email": email}) + "\n" for email in people[7:8]))
    ended = finity(stack.directory, "users", "import", str(objects))
    assert (ended.returncode, counted(ended.stdout)["created"]) == (0, 1)
    ended = finity(stack.directory, "users", "import", str(objects), FINITY_SERVICE_KEY="fsk_x")
    assert ended.returncode == 1
    assert "CREDENTIALS_INVALID" in ended.stderr


def counted(output: str) -> dict[str, int]:
    """Reads the numbers of the summary."""
    lines = [line.split() for line in output.splitlines() if not line.startswith(" ")]
    return {words[0]: int(words[1].replace(",", "")) for words in lines if len(words) == 2}
