"""A file of users, line by line."""

from pathlib import Path

import pytest
from finity.auth.v1 import auth_pb2

from suite.errors import SuiteError
from suite.users.file import Row, read

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"


def rows(tmp_path: Path, text: str | bytes) -> list[Row]:
    path = tmp_path / "users"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read(path))


def test_csv_names_its_columns(tmp_path: Path) -> None:
    """Columns come in any order; a hash with commas is quoted; empty lines are passed over."""
    text = f'\ufeffpassword_hash,email,role\r\n"{HASH}",ada@example.com,Admin\r\n\r\n,bob@b.de,\r\n'
    ada, bob = rows(tmp_path, text)
    assert (ada.line, bob.line) == (2, 4)
    assert ada.user is not None
    assert bob.user is not None
    assert (ada.user.email, ada.user.password_hash) == ("ada@example.com", HASH)
    assert (ada.user.role, bob.user.role) == (auth_pb2.ROLE_ADMIN, auth_pb2.ROLE_UNSPECIFIED)
    assert not bob.user.HasField("create_time")


def test_json_is_an_object_a_line(tmp_path: Path) -> None:
    """Values are as in CSV; true and false are JSON's; a time without a zone is UTC."""
    text = '{"email": "a@b.de", "email_verified": true, "create_time": "2020-01-31T09:30:00"}\n'
    (row,) = rows(tmp_path, text)
    assert row.user is not None
    assert row.user.email_verified
    assert row.user.create_time.ToJsonString() == "2020-01-31T09:30:00Z"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"a@b.de", "The line has 1 columns, the header 3."),
        (b"a@b.de,king,", "role is free, pro or admin."),
        (b"a@b.de,,yesterday", "create_time is an ISO 8601 time."),
        (b"\xff@b.de,,", "The line cannot be read."),
    ],
)
def test_a_line_that_is_no_user_says_why(tmp_path: Path, line: bytes, problem: str) -> None:
    """It is reported with its number and does not stop the others."""
    bad, good = rows(tmp_path, b"email,role,create_time\n" + line + b"\nb@b.de,,\n")
    assert (bad.line, bad.user, bad.problem) == (2, None, problem)
    assert good.user is not None


@pytest.mark.parametrize("line", ["[1]", "{", '{"e-mail": "a@b.de"}', '{"email_verified": 2}'])
def test_an_object_that_is_no_user_says_why(tmp_path: Path, line: str) -> None:
    """Broken JSON, unknown names and wrong values."""
    _, bad = rows(tmp_path, '{"email": "a@b.de"}\n' + line)
    assert bad.user is None
    assert bad.problem.endswith(".")


@pytest.mark.parametrize("header", ["", "name,role", "email,salary", "email,email"])
def test_the_first_line_says_what_the_file_is(tmp_path: Path, header: str) -> None:
    """Anything else is refused with what it should be."""
    with pytest.raises(SuiteError, match="name the columns"):
        rows(tmp_path, f"{header}\na@b.de,")
