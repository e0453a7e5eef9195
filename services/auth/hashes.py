"""
Password hashes that other systems made: reading, judging and verifying them.

Formats are modular crypt ($2b$…) and PHC strings. Each has a least and a greatest
cost. Too little would let in what is quickly guessed; too much would let whoever
imports, or knows whom they imported, keep our processes busy with one login.
Ory Kratos caps imports at argon2 1 GiB and 10 passes, bcrypt 15, scrypt N 2^17;
Zitadel has minimums as well. Ours are tighter: a verification takes at most about a
second of a core and 256 MiB. Minimums are what was once a recommendation.
"""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Protocol

import bcrypt

from services.auth.domain.imports import Rejection

KIB, MIB = 1024, 1024 * 1024
# OWASP's minimum work factor; 14, Zitadel's default, takes a second of a core.
BCRYPT_COST = (10, 14)
# bcrypt reads no further (OWASP Password Storage Cheat Sheet).
BCRYPT_BYTES = 72
# The least is what node-argon2 once defaulted to: 4 MiB, 3 passes.
ARGON2_MEMORY_KIB = (4 * KIB, 256 * KIB)
ARGON2_WORK_KIB = (12 * KIB, 1024 * KIB)
ARGON2_LANES = 16
# 128·N·r·p bytes: the least is Node's default (N 2^14, r 8), OWASP's best is N 2^17, r 8.
SCRYPT_WORK = (16 * MIB, 256 * MIB)
SCRYPT_MEMORY = 128 * MIB
SCRYPT_LANES = 16
# The least is NIST SP 800-63B's (2017), section 5.1.1.2; Django 6 makes 1,200,000.
PBKDF2_ITERATIONS = (10_000, 2_000_000)
SALT_BYTES = (8, 64)
HASH_BYTES = (16, 64)

_B64 = "([A-Za-z0-9+/.]{1,100})"
_NUMBER = r"(\d{1,10})"
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}", re.ASCII)
_ARGON2 = re.compile(
    rf"\$argon2id?\$v=19\$m={_NUMBER},t={_NUMBER},p={_NUMBER}\${_B64}\${_B64}", re.ASCII
)
_SCRYPT = re.compile(rf"\$scrypt\$ln=(\d\d?),r={_NUMBER},p={_NUMBER}\${_B64}\${_B64}", re.ASCII)
_PBKDF2 = re.compile(
    rf"\$pbkdf2-(sha256|sha512)\$(?:i=)?{_NUMBER}(?:,l=\d{{1,3}})?\${_B64}\${_B64}",
    re.ASCII,
)
_DJANGO = re.compile(
    rf"pbkdf2_(sha256|sha512)\${_NUMBER}\$([!-#%-~]{{1,64}})\${_B64}={{0,2}}", re.ASCII
)


class Foreign(Protocol):
    """A hash of another kind than argon2."""

    def fault(self) -> Rejection | None:
        """Returns why an import must not take it."""
        ...

    def fits(self, password: bytes) -> bool:
        """Tells whether it is the password's; takes a core for up to about a second."""
        ...


@dataclass(frozen=True, slots=True)
class Bcrypt:
    """bcrypt in its three good spellings; "$2x$" was made by a defective one."""

    text: str
    cost: int

    def fault(self) -> Rejection | None:
        return _outside(self.cost, BCRYPT_COST)

    def fits(self, password: bytes) -> bool:
        return bcrypt.checkpw(password[:BCRYPT_BYTES], self.text.encode())


@dataclass(frozen=True, slots=True)
class Scrypt:
    """scrypt (RFC 7914)."""

    log_n: int
    block: int
    lanes: int
    salt: bytes
    digest: bytes

    def fault(self) -> Rejection | None:
        memory = 128 * 2**self.log_n * self.block
        if memory > SCRYPT_MEMORY or self.lanes > SCRYPT_LANES:
            return Rejection.HASH_TOO_COSTLY
        return _outside(memory * self.lanes, SCRYPT_WORK)

    def fits(self, password: bytes) -> bool:
        made = hashlib.scrypt(
            password,
            salt=self.salt,
            n=2**self.log_n,
            r=self.block,
            p=self.lanes,
            maxmem=2 * SCRYPT_MEMORY,
            dklen=len(self.digest),
        )
        return hmac.compare_digest(made, self.digest)


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """PBKDF2 (RFC 8018) with HMAC-SHA-256 or HMAC-SHA-512."""

    name: str
    iterations: int
    salt: bytes
    digest: bytes

    def fault(self) -> Rejection | None:
        # A key longer than the digest is made of several, each at the whole cost.
        blocks = -(-len(self.digest) // hashlib.new(self.name).digest_size)
        least, most = PBKDF2_ITERATIONS
        return _outside(self.iterations, (least, most // blocks))

    def fits(self, password: bytes) -> bool:
        made = hashlib.pbkdf2_hmac(
            self.name, password, self.salt, self.iterations, len(self.digest)
        )
        return hmac.compare_digest(made, self.digest)


def fault(hashed: str) -> Rejection | None:
    """Returns why an import must not take a hash, None if it may."""
    if match := _ARGON2.fullmatch(hashed):
        return _argon2_fault(match)
    found = read(hashed)
    return found.fault() if found else Rejection.HASH_FORMAT_UNKNOWN


def read(hashed: str) -> Foreign | None:
    """Reads a hash of any format here but argon2, None for anything else."""
    if match := _BCRYPT.fullmatch(hashed):
        return Bcrypt(hashed, int(match[1]))
    if match := _SCRYPT.fullmatch(hashed):
        return _scrypt(match)
    if match := _PBKDF2.fullmatch(hashed):
        return _pbkdf2(match, _decode(match[3], SALT_BYTES))
    if match := _DJANGO.fullmatch(hashed):
        # Django's salt is text.
        return _pbkdf2(match, match[3].encode())
    return None


def _argon2_fault(match: re.Match[str]) -> Rejection | None:
    memory, passes, lanes = (int(match[number]) for number in (1, 2, 3))
    if not (_decode(match[4], SALT_BYTES) and _decode(match[5], HASH_BYTES) and lanes):
        return Rejection.HASH_FORMAT_UNKNOWN
    if lanes > ARGON2_LANES:
        return Rejection.HASH_TOO_COSTLY
    return _outside(memory, ARGON2_MEMORY_KIB) or _outside(memory * passes, ARGON2_WORK_KIB)


def _scrypt(match: re.Match[str]) -> Scrypt | None:
    log_n, block, lanes = (int(match[number]) for number in (1, 2, 3))
    salt, digest = _decode(match[4], SALT_BYTES), _decode(match[5], HASH_BYTES)
    # RFC 7914 section 6: N is more than 1 and less than 2^(128·r/8).
    if salt is None or digest is None or not (0 < log_n < 16 * block and lanes):
        return None
    return Scrypt(log_n, block, lanes, salt, digest)


def _pbkdf2(match: re.Match[str], salt: bytes | None) -> Pbkdf2 | None:
    digest, iterations = _decode(match[4], HASH_BYTES), int(match[2])
    if not salt or digest is None or not iterations:
        return None
    return Pbkdf2(match[1], iterations, salt, digest)


def _decode(text: str, sizes: tuple[int, int]) -> bytes | None:
    """Reads base64 without padding, or passlib's with "." for "+"; None if it is damaged."""
    try:
        raw = base64.b64decode(text.replace(".", "+") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None
    return raw if sizes[0] <= len(raw) <= sizes[1] else None


def _outside(value: int, bounds: tuple[int, int]) -> Rejection | None:
    least, most = bounds
    if value < least:
        return Rejection.HASH_TOO_WEAK
    return Rejection.HASH_TOO_COSTLY if value > most else None
