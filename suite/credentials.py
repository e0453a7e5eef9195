"""Development credentials: made once per checkout, kept in .finity/credentials.json."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from chassis.settings import DEVELOPMENT_SECRET
from suite import state
from suite.rooms import ROOMS

# Callers besides the rooms: the suite itself, a person at a terminal, the Node API.
SUITE, DEVELOPER, NODE_API = "suite", "dev", "node-api"
FILE = "credentials.json"
CALLERS = (*(room.name for room in ROOMS), SUITE, DEVELOPER, NODE_API)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Every secret of a development suite, in the clear."""

    secret: str
    """FINITY_SECRET over the embedded database."""
    service_keys: dict[str, str]
    """Caller → its key."""
    admin_email: str
    admin_password: str

    def environment(self, caller: str, given: Mapping[str, str]) -> dict[str, str]:
        """
        The settings of a process that calls the others as `caller`.

        `given` is the environment of who starts the suite. Its FINITY_SECRET is kept; its
        service keys are not, because each room needs one of its own.
        """
        digests = {
            name: [hashlib.sha256(key.encode()).hexdigest()]
            for name, key in self.service_keys.items()
        }
        return {
            "FINITY_SECRET": given.get("FINITY_SECRET") or self._default_secret(given),
            "FINITY_SERVICE_KEYS": json.dumps(digests),
            "FINITY_SERVICE_KEY": self.service_keys[caller],
        }

    def _default_secret(self, given: Mapping[str, str]) -> str:
        # It seals auth's signing key in the database. One of DATABASE_URL outlives this folder
        # and may serve other checkouts: a secret of the folder's own would lock those, and
        # `make run` after `make clean`, out of it for good.
        return DEVELOPMENT_SECRET if given.get("DATABASE_URL") else self.secret


def new_service_key(caller: str) -> str:
    """Returns fsk_<caller>_ and 43 URL-safe random characters."""
    return f"fsk_{caller}_{secrets.token_urlsafe(32)}"


def load(directory: Path) -> Credentials:
    """Returns the credentials of a state folder, making those that are missing."""
    path = directory / FILE
    kept = state.read(path)
    keys = kept.get("service_keys", {})
    credentials = Credentials(
        secret=kept.get("secret") or secrets.token_urlsafe(32),
        service_keys={caller: keys.get(caller) or new_service_key(caller) for caller in CALLERS},
        # Two checkouts may share one DATABASE_URL: each has its own administrator.
        admin_email=kept.get("admin_email") or f"admin-{secrets.token_hex(3)}@finity.localhost",
        admin_password=kept.get("admin_password") or secrets.token_urlsafe(12),
    )
    if asdict(credentials) != kept:
        state.write(path, asdict(credentials))
    return credentials
