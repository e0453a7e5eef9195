"""
Page tokens of keyset pagination (AIP-158).

A token holds the key of the last row and is signed together with the request's
filters: it cannot be edited, and it cannot be used with other filters.
"""

import base64
import binascii
import hashlib
import hmac
import json

from chassis.refusals import PageTokenInvalid

_SIGNATURE_BYTES = 16


class PageTokens:
    """Signs and reads page tokens with a key derived from the service's secret."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encode(self, last: tuple[str, ...], scope: str) -> str:
        """Returns the token that continues after the row with key `last`."""
        body = json.dumps(last, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._sign(body, scope) + body).decode().rstrip("=")

    def decode(self, token: str, scope: str) -> tuple[str, ...]:
        """Returns the key a token holds; PageTokenInvalid if it is not ours for this scope."""
        try:
            raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except (binascii.Error, UnicodeEncodeError) as error:
            raise PageTokenInvalid from error
        signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(body, scope)):
            raise PageTokenInvalid
        return tuple(json.loads(body))

    def _sign(self, body: bytes, scope: str) -> bytes:
        text = scope.encode() + b"\0" + body
        return hmac.digest(self._key, text, hashlib.sha256)[:_SIGNATURE_BYTES]
