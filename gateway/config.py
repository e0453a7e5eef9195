"""What the gateway is told by its environment; every variable starts with FINITY_."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from chassis.settings import ROOM_PORTS

# Where a front end in development usually runs.
DEVELOPMENT_ORIGIN = "http://localhost:3000"
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")
ADDRESS = re.compile(r"[A-Za-z0-9._-]+:\d{1,5}")
HIGHEST_PORT = 65535


def _room(name: str) -> str:
    return f"127.0.0.1:{ROOM_PORTS[name]}"


class GatewaySettings(BaseSettings):
    """Where the gateway listens, where the rooms are and how much a caller may ask."""

    model_config = SettingsConfigDict(env_prefix="FINITY_", extra="ignore")

    env: Literal["development", "production"] = "development"
    gateway_host: str = "127.0.0.1"
    """IP address to listen on."""
    gateway_port: int = Field(8080, ge=1, le=HIGHEST_PORT)
    gateway_admin_port: int = Field(0, ge=0, le=HIGHEST_PORT)
    """Envoy's admin page, on 127.0.0.1 only; 0 switches it off."""
    gateway_concurrency: int = Field(2, ge=1, le=64)
    """Envoy's worker threads."""
    gateway_max_body_bytes: int = Field(1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """Larger request bodies are refused with BODY_TOO_LARGE."""
    gateway_timeout_seconds: float = Field(15.0, gt=0, le=300)
    """Time a service gets for one call; it is told so in grpc-timeout."""
    gateway_max_connections: int = Field(10_000, ge=1)
    """Client connections at once; more are closed as they arrive."""
    cors_origins: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Comma-separated origins whose pages may call the gateway, or "*". Unset means
    http://localhost:3000 in development and none in production."""

    auth_address: str = _room("auth")
    billing_address: str = _room("billing")
    usage_address: str = _room("usage")
    referrals_address: str = _room("referrals")
    content_address: str = _room("content")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(origin.strip() for origin in value.split(",") if origin.strip())

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for origin in value or ():
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f'"{origin}" is not an origin such as https://app.example.com')
        return value

    @field_validator(*(f"{room}_address" for room in ROOM_PORTS))
    @classmethod
    def _check_address(cls, value: str) -> str:
        if not ADDRESS.fullmatch(value) or not 0 < int(value.rpartition(":")[2]) <= HIGHEST_PORT:
            raise ValueError(f'"{value}" is not an address such as 127.0.0.1:50051')
        return value

    @model_validator(mode="after")
    def _choose_origins(self) -> Self:
        if self.cors_origins is None:
            development = self.env == "development"
            self.cors_origins = (DEVELOPMENT_ORIGIN,) if development else ()
        return self

    def address(self, room: str) -> tuple[str, int]:
        """Returns host and port of a room of the contracts; KeyError for one without a setting."""
        if room not in ROOM_PORTS:
            raise KeyError(f"the room {room} has no address setting; add it to ROOM_PORTS and here")
        host, _, port = str(getattr(self, f"{room}_address")).rpartition(":")
        return host, int(port)
