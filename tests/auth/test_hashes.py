"""Hashes of other systems: each format by published and computed values, and its costs."""

import base64
import hashlib
from collections.abc import AsyncIterator

import bcrypt
import pytest
from argon2 import PasswordHasher
from argon2.low_level import Type

from services.auth.domain.imports import Rejection
from services.auth.hashes import Pbkdf2, Scrypt, fault, read
from services.auth.passwords import Passwords
from tests.auth.hashed import spied
from tests.running import PASSWORD

SALT = b"sixteen bytes ok"
FAST_BCRYPT = bcrypt.gensalt(4)


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    """A pool that hashes fast."""
    pool = Passwords(memory_kib=8, time_cost=1, queue=10)
    yield pool
    pool.close()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def made_scrypt(password: str, *, ln: int = 4, r: int = 8, p: int = 1) -> str:
    raw = hashlib.scrypt(password.encode(), salt=SALT, n=2**ln, r=r, p=p, dklen=32, maxmem=2**29)
    return f"$scrypt$ln={ln},r={r},p={p}${b64(SALT)}${b64(raw)}"


def made_pbkdf2(password: str, name: str = "sha256", rounds: int = 10) -> str:
    raw = hashlib.pbkdf2_hmac(name, password.encode(), SALT, rounds)
    return f"$pbkdf2-{name}$i={rounds}${b64(SALT)}${b64(raw)}"


def made_django(password: str, name: str = "sha256", rounds: int = 10) -> str:
    salt = "5kd7O6aqqUFxRdrQyfWoLV"
    raw = hashlib.pbkdf2_hmac(name, password.encode(), salt.encode(), rounds)
    return f"pbkdf2_{name}${rounds}${salt}${base64.b64encode(raw).decode()}"


def made_bcrypt(password: str, version: str = "2b") -> str:
    hashed = bcrypt.hashpw(password.encode()[:72], FAST_BCRYPT).decode()
    return hashed.replace("$2b$", f"${version}$")


def made_argon2(password: str, kind: Type = Type.ID) -> str:
    return PasswordHasher(time_cost=1, memory_cost=64, parallelism=4, type=kind).hash(password)


MADE = {
    "bcrypt 2a": made_bcrypt(PASSWORD, "2a"),
    "bcrypt 2b": made_bcrypt(PASSWORD),
    "bcrypt 2y": made_bcrypt(PASSWORD, "2y"),
    "argon2id": made_argon2(PASSWORD),
    "argon2i": made_argon2(PASSWORD, Type.I),
    "scrypt": made_scrypt(PASSWORD),
    "pbkdf2-sha256": made_pbkdf2(PASSWORD),
    "pbkdf2-sha512": made_pbkdf2(PASSWORD, "sha512"),
    "passlib's pbkdf2": made_pbkdf2(PASSWORD).replace("i=", "").replace("+", "."),
    "Django's pbkdf2": made_django(PASSWORD),
    "Django's pbkdf2-sha512": made_django(PASSWORD, "sha512"),
}
# jBCrypt's and the Argon2 reference implementation's own test vectors.
PUBLISHED = {
    "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u": "a",
    "$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi": "abc",
    "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc": (
        "password"
    ),
    "$argon2i$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$wWKIMhR9lyDFvRz9YTZweHKfbftvj+qf+YFY4NeBbtA": (
        "password"
    ),
}


@pytest.mark.parametrize("hashed", MADE.values(), ids=MADE)
async def test_a_foreign_hash_is_its_password_s(passwords: Passwords, hashed: str) -> None:
    """What another library made verifies its password alone, and is outdated from the start."""
    assert await passwords.verify(PASSWORD, hashed)
    for other in (PASSWORD + "!", PASSWORD[:-1], PASSWORD.upper(), "", PASSWORD + "\0"):
        assert not await passwords.verify(other, hashed)
    assert passwords.outdated(hashed)


@pytest.mark.parametrize(("hashed", "password"), PUBLISHED.items())
async def test_published_hashes(passwords: Passwords, hashed: str, password: str) -> None:
    """The vectors that implementations publish verify, and an import takes them."""
    assert await passwords.verify(password, hashed)
    assert not await passwords.verify(password + "x", hashed)
    assert fault(hashed) is None


def test_published_vectors_of_scrypt() -> None:
    """RFC 7914, section 12."""
    digest = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    assert Scrypt(14, 8, 1, b"SodiumChloride", digest).fits(b"pleaseletmein")
    text = f"$scrypt$ln=14,r=8,p=1${b64(b'SodiumChloride')}${b64(digest)}"
    assert read(text) == Scrypt(14, 8, 1, b"SodiumChloride", digest)
    assert fault(text) is None


def test_published_vectors_of_pbkdf2() -> None:
    """RFC 7914, section 11, for SHA-256; the common vector of SHA-512."""
    sha256 = bytes.fromhex(
        "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56"
        "a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d"
    )
    assert Pbkdf2("sha256", 80000, b"NaCl", sha256).fits(b"Password")
    sha512 = bytes.fromhex(
        "867f70cf1ade02cff3752599a3a53dc4af34c7a669815ae5d513554e1c8cf252"
        "c02d470a285a0501bad999bfe943c08f050235d7d68b1da55e63f73b60a57fce"
    )
    assert Pbkdf2("sha512", 1, b"salt", sha512).fits(b"password")
    assert not Pbkdf2("sha512", 2, b"salt", sha512).fits(b"password")


async def test_bcrypt_reads_72_bytes(passwords: Passwords) -> None:
    """A longer password verifies as the system that made the hash did, cut within a character."""
    long = "é" * 40
    hashed = made_bcrypt(long)
    assert await passwords.verify(long, hashed)
    assert await passwords.verify("é" * 36 + "anything", hashed)
    assert not await passwords.verify("é" * 35, hashed)


async def test_a_nul_fits_no_foreign_hash(passwords: Passwords) -> None:
    """bcrypt takes "a" and "a NUL a" for one, HMAC "a" and "a NUL": neither is let in."""
    assert bcrypt.checkpw(b"a\0a", made_bcrypt("a").encode())
    assert not await passwords.verify("a\0a", made_bcrypt("a"))
    assert Pbkdf2("sha256", 1, SALT, hashlib.pbkdf2_hmac("sha256", b"a", SALT, 1)).fits(b"a\0")
    for hashed in (made_pbkdf2("a"), made_scrypt("a")):
        assert not await passwords.verify("a\0", hashed)


def argon2(memory: int, passes: int, lanes: int, kind: str = "argon2id") -> str:
    return f"${kind}$v=19$m={memory},t={passes},p={lanes}${b64(SALT)}${b64(bytes(32))}"


def scrypt(ln: int, r: int, p: int) -> str:
    return f"$scrypt$ln={ln},r={r},p={p}${b64(SALT)}${b64(bytes(32))}"


def pbkdf2(rounds: int, length: int = 32, name: str = "sha256") -> str:
    return f"$pbkdf2-{name}$i={rounds}${b64(SALT)}${b64(bytes(length))}"


def of_cost(cost: int) -> str:
    return f"$2b${cost:02}$" + "a" * 21 + "." + "a" * 31


GOOD = [
    of_cost(10),
    of_cost(14),
    argon2(19456, 2, 1),
    argon2(4096, 3, 1),
    argon2(8192, 8, 1, "argon2i"),
    argon2(65536, 4, 16),
    argon2(262144, 4, 1),
    scrypt(14, 8, 1),
    scrypt(14, 16, 1),
    scrypt(17, 8, 2),
    scrypt(13, 8, 10),
    pbkdf2(10_000),
    pbkdf2(2_000_000),
    pbkdf2(1_000_000, 64),
    pbkdf2(2_000_000, 64, "sha512"),
    f"pbkdf2_sha256$1200000$5kd7O6aqqUFxRdrQyfWoLV${base64.b64encode(bytes(32)).decode()}",
]
WEAK = [
    of_cost(9),
    of_cost(4),
    argon2(8, 1, 1),
    argon2(4096, 2, 1),
    argon2(2048, 10, 1),
    argon2(65536, 0, 1),
    scrypt(13, 8, 1),
    pbkdf2(9_999),
    "pbkdf2_sha256$1000$salt$" + base64.b64encode(bytes(32)).decode(),
]
COSTLY = [
    of_cost(15),
    of_cost(31),
    argon2(262145, 1, 1),
    argon2(65536, 17, 1),
    argon2(65536, 4, 17),
    argon2(4096, 9999999999, 1),
    scrypt(18, 8, 1),
    scrypt(14, 9999999999, 1),
    scrypt(99, 8, 1),
    scrypt(10, 8, 17),
    scrypt(17, 8, 3),
    pbkdf2(2_000_001),
    pbkdf2(1_000_001, 64),
]
UNKNOWN = [
    "none",
    PASSWORD,
    "5f4dcc3b5aa765d61d8327deb882cf99",
    "$1$saltsalt$qjXMvbEw8oaL.CzflDtaK/",
    "$2x$10$" + "a" * 21 + "." + "a" * 31,
    of_cost(10) + "a",
    of_cost(10)[:-1],
    of_cost(10) + "\n",
    "$2b$10$" + "a" * 53,
    argon2(65536, 3, 0),
    argon2(65536, 3, 1, "argon2d"),
    argon2(65536, 3, 1).replace("v=19", "v=16"),
    argon2(65536, 3, 1).replace("m=65536", "m=-1"),
    argon2(65536, 3, 1).replace("m=65536", "m=٦٥٥٣٦"),
    argon2(65536, 3, 1)[:-40],
    argon2(65536, 3, 1) + "A" * 200,
    scrypt(0, 8, 1),
    scrypt(14, 0, 1),
    scrypt(14, 8, 0),
    scrypt(16, 1, 1),
    pbkdf2(0),
    pbkdf2(10_000, 15),
    pbkdf2(10_000, 65),
    pbkdf2(10_000, name="sha1"),
    f"$pbkdf2-sha256$i=10000$c2FsdA${b64(bytes(32))}",
    f"$pbkdf2-sha256$i=10000$c2FsdHNhbHQ=${b64(bytes(32))}",
    f"$pbkdf2-sha256$i=10000$a${b64(bytes(32))}",
    "$scrypt$" + "9" * 100_000,
]


@pytest.mark.parametrize("hashed", GOOD)
def test_costs_that_are_recommended_are_taken(hashed: str) -> None:
    """Within the bounds, bounds included, a hash may be imported."""
    assert fault(hashed) is None


@pytest.mark.parametrize(
    ("hashed", "why"),
    [
        *((hashed, Rejection.HASH_TOO_WEAK) for hashed in WEAK),
        *((hashed, Rejection.HASH_TOO_COSTLY) for hashed in COSTLY),
        *((hashed, Rejection.HASH_FORMAT_UNKNOWN) for hashed in UNKNOWN),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_hashes_are_rejected(hashed: str, why: Rejection) -> None:
    """Too weak, too costly or no hash at all, each by its name and before any work."""
    assert fault(hashed) is why


@pytest.mark.parametrize("hashed", ["none", "$2b$12$abcdefghijklmnopqrstuv", "$scrypt$ln=1"])
async def test_what_is_no_hash_costs_what_a_hash_costs(
    passwords: Passwords, hashed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged hash is verified as an absent one is: with today's parameters, and never fits."""
    verified = spied(passwords, monkeypatch)
    assert not await passwords.verify("no account has this password", hashed)
    assert len(verified) == 1
    assert not passwords.outdated(verified[0])
