"""
Secrets that are sent to a person and work once.

A link's secret and a code are derived from the row's id with a key of the room's
(HMAC-SHA256), so that they rest nowhere: the table holds a digest, the outbox
the row's id.
"""

import base64
import hashlib
import hmac
from uuid import UUID

# What the key is derived for, by the room that writes a row and by the mailer that writes the mail.
PURPOSE = "one-time"
CODE_DIGITS = 6
# A million codes, so five guesses find one in two hundred thousand times.
CODE_TRIES = 5
_SECRET_BYTES = 24


def secret_of(key: bytes, row_id: UUID) -> str:
    """Returns the secret of a row for a link: 192 bits, base64url."""
    mac = hmac.digest(key, b"link:" + row_id.bytes, hashlib.sha256)
    return base64.urlsafe_b64encode(mac[:_SECRET_BYTES]).decode()


def code_of(key: bytes, row_id: UUID) -> str:
    """Returns the code of a row: six decimal digits, for somebody to type."""
    mac = hmac.digest(key, b"code:" + row_id.bytes, hashlib.sha256)
    return f"{int.from_bytes(mac[:8]) % 10**CODE_DIGITS:0{CODE_DIGITS}}"
