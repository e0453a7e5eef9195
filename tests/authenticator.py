"""A passkey authenticator in software (WebAuthn Level 3 section 6): ES256, no attestation."""

import base64
import hashlib
import json
import secrets
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

ORIGIN = "http://localhost:3000"
_PRESENT, _VERIFIED, _SYNCABLE, _SYNCED, _ATTESTED = 0x01, 0x04, 0x08, 0x10, 0x40


class Authenticator:
    """Holds one passkey; what it is told at construction may be changed at any time."""

    def __init__(self, *, origin: str = ORIGIN, counts: bool = True, verifies: bool = True) -> None:
        """`counts`: whether it counts signatures; `verifies`: whether it verifies its user."""
        self.origin = origin
        self.counts = counts
        self.verifies = verifies
        self.synced = False
        self.rp_id = ""
        self.count = 0
        self.credential_id = secrets.token_bytes(32)
        self.user_handle: bytes | None = b""
        self.key = ec.generate_private_key(ec.SECP256R1())

    def create(self, options: str) -> str:
        """Answers creation options; the credential's toJSON() as text."""
        asked = json.loads(options)
        self.rp_id = asked["rp"]["id"]
        self.user_handle = _read(asked["user"]["id"])
        length = len(self.credential_id).to_bytes(2, "big")
        attested = bytes(16) + length + self.credential_id + cbor2.dumps(self._public_key())
        data = self._data(_ATTESTED) + attested
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        client = self._client("webauthn.create", asked["challenge"])
        return self._credential(
            {"clientDataJSON": _spell(client), "attestationObject": _spell(attestation)}
        )

    def get(self, options: str) -> str:
        """Answers request options; the credential's toJSON() as text."""
        asked = json.loads(options)
        data = self._data(0)
        client = self._client("webauthn.get", asked["challenge"])
        signed = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        handle = None if self.user_handle is None else _spell(self.user_handle)
        return self._credential(
            {
                "clientDataJSON": _spell(client),
                "authenticatorData": _spell(data),
                "signature": _spell(signed),
                "userHandle": handle,
            }
        )

    def _data(self, flags: int) -> bytes:
        self.count += self.counts
        flags |= _PRESENT | (_VERIFIED if self.verifies else 0)
        flags |= (_SYNCABLE | _SYNCED) if self.synced else 0
        rp_hash = hashlib.sha256(self.rp_id.encode()).digest()
        return rp_hash + bytes([flags]) + self.count.to_bytes(4, "big")

    def _client(self, kind: str, challenge: str) -> bytes:
        return json.dumps(
            {"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}
        ).encode()

    def _credential(self, response: dict[str, Any]) -> str:
        name = _spell(self.credential_id)
        return json.dumps({"id": name, "rawId": name, "type": "public-key", "response": response})

    def _public_key(self) -> dict[int, Any]:
        point = self.key.public_key().public_numbers()
        x, y = (number.to_bytes(32, "big") for number in (point.x, point.y))
        return {1: 2, 3: -7, -1: 1, -2: x, -3: y}


def _spell(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _read(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
