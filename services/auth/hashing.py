"""
Making and verifying password hashes; takes a core for long, and so runs in a child process.

Hashes are argon2id (RFC 9106), made and verified by libsodium, which fills memory with
the widest vectors the processor has. Those that came from another system are verified
by what hashes.py knows of them.
"""

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from services.auth import hashes

_ARGON2 = "$argon2"
_OTHER = PasswordHasher()


def make(password: str, passes: int, memory: int) -> str:
    """Returns a PHC string; `memory` is in bytes."""
    return argon2id.str(password.encode(), opslimit=passes, memlimit=memory).decode()


def fits(password: str, hashed: str, dummy: str) -> bool:
    """Tells whether the password fits; nothing fits what is no hash, at the cost of `dummy`."""
    if not outdated(hashed, dummy):
        return _fits_own(password, hashed)
    fitting = _fits_other(password, hashed)
    if fitting is None:
        _fits_own(password, dummy)
        return False
    return fitting


def outdated(hashed: str, today: str) -> bool:
    """Tells whether a hash was made in another way than the one of today."""
    parameters = today[: today.index(",p=") + len(",p=1$")]
    return not hashed.startswith(parameters) or len(hashed) != len(today)


def _fits_own(password: str, hashed: str) -> bool:
    try:
        return argon2id.verify(hashed.encode(), password.encode())
    except InvalidkeyError:
        return False


def _fits_other(password: str, hashed: str) -> bool | None:
    """Tells whether it fits a hash that was made in another way; None if that is no hash."""
    if hashed.startswith(_ARGON2):
        try:
            return _OTHER.verify(hashed, password)
        except VerificationError:
            return False
        except InvalidHashError:
            return None
    foreign = hashes.read(hashed)
    if foreign is None:
        return None
    # bcrypt takes "a" and "a\0a" for one password, HMAC "a" and "a\0".
    return foreign.fits(password.encode()) and "\0" not in password
