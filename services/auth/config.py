"""What the auth room is told by its environment; read only by __main__."""

import json
from datetime import timedelta
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from chassis.limits import Limit
from chassis.settings import ROOM_PORTS, ServiceSettings
from services.auth.domain.passkeys import LOCAL, RelyingParty
from services.auth.domain.sessions import SessionPolicy
from services.auth.service.room import Guesses


class Settings(ServiceSettings):
    """Each field is a variable with the prefix FINITY_, but for the two ports named below."""

    port: int = Field(ROOM_PORTS["auth"], ge=0, le=65535, validation_alias="FINITY_AUTH_PORT")
    metrics_port: int = Field(0, ge=0, le=65535, validation_alias="FINITY_AUTH_METRICS_PORT")
    usage_address: str = f"127.0.0.1:{ROOM_PORTS['usage']}"
    """host:port of the usage service, which opens an account for each new user."""

    issuer: str = "https://finity.ai"
    """The "iss" claim of access tokens."""
    access_token_seconds: int = Field(900, ge=10, le=3600)
    session_idle_days: int = Field(30, ge=1, le=365)
    """A session not refreshed for so long is over."""
    session_days: int = Field(90, ge=1, le=730)
    """A session is over after so long, however often it was refreshed."""
    refresh_grace_seconds: int = Field(10, ge=0, le=60)
    """After a refresh, how long older tokens of the session still get its successor."""
    refresh_reuse_seconds: int = Field(60, ge=0, le=86400)
    """How long the token just before the current one still gets it; 0 is strict."""

    argon2_memory_kib: int = Field(19456, ge=8)
    argon2_time_cost: int = Field(2, ge=1)
    argon2_queue: int = Field(256, ge=1)
    """Passwords that may wait to be hashed; more are refused with HASHING_BUSY."""

    guesses_per_pair: int = Field(5, ge=1)
    """Wrong passwords for one account from one address before each further one costs a wait."""
    guesses_per_account: int = Field(20, ge=1)
    """The same for one account, from wherever."""
    guesses_per_address: int = Field(50, ge=1)
    """The same from one address, for whatever account."""

    webauthn_rp_id: str = Field(LOCAL.id, min_length=1)
    """The domain passkeys are bound to; those made for one work with no other."""
    webauthn_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """JSON: pages that may ask for passkeys; none is https://<rp id>, for localhost port 3000."""

    @field_validator("webauthn_origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "[]")
        except ValueError as error:
            raise ValueError('must be JSON such as ["https://finity.ai"]') from error

    def relying_party(self) -> RelyingParty:
        """Returns whom passkeys are made for."""
        local = self.webauthn_rp_id == LOCAL.id
        own = LOCAL.origins if local else (f"https://{self.webauthn_rp_id}",)
        return RelyingParty(self.webauthn_rp_id, self.webauthn_origins or own)

    def guesses(self) -> Guesses:
        """Returns how fast passwords and codes may be guessed."""
        return Guesses(
            pair=Limit("pair", free=self.guesses_per_pair, first=1.0, longest=900.0),
            account=Limit("account", free=self.guesses_per_account, first=1.0, longest=60.0),
            address=Limit("address", free=self.guesses_per_address, first=1.0, longest=900.0),
        )

    def session_policy(self) -> SessionPolicy:
        """Returns the lifetimes as the domain's rules take them."""
        return SessionPolicy(
            access_token=timedelta(seconds=self.access_token_seconds),
            idle=timedelta(days=self.session_idle_days),
            absolute=timedelta(days=self.session_days),
            grace=timedelta(seconds=self.refresh_grace_seconds),
            reuse=timedelta(seconds=self.refresh_reuse_seconds),
        )
