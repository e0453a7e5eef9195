"""
What a service is told by its environment.

Every variable starts with FINITY_ except DATABASE_URL and REDIS_URL, whose names
the product fixed. The defaults are the development stack of docker-compose.yml;
with FINITY_ENV=production a service refuses to start on any of them.
"""

import functools
import hashlib
import hmac
import json
import re
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEVELOPMENT_DATABASE = "postgresql://finity:finity_password@localhost:5432/finity_db?schema=public"
DEVELOPMENT_REDIS = "redis://localhost:6379"
# A fixed value that anybody can read here; good for a laptop and nothing else.
DEVELOPMENT_SECRET = "development-secret-not-for-production"  # noqa: S105
DEVELOPMENT_KEY = "development-key-not-for-production"
MINIMUM_SECRET_LENGTH = 32
# Three spellings of the same Redis database.
_DATABASE_0 = re.compile(r"/0?$")

# The ports a developer finds the rooms on; one block, in the order of the README.
ROOM_PORTS = {"auth": 50051, "billing": 50052, "usage": 50053, "referrals": 50054, "content": 50055}

S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """A setting is missing or wrong; the message names it and says what to put there."""


class ServiceSettings(BaseSettings):
    """What every service needs to know; a room's config.py adds its own."""

    model_config = SettingsConfigDict(env_prefix="FINITY_", extra="ignore", populate_by_name=True)

    env: Literal["development", "production"] = "development"
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_url: SecretStr = Field(
        SecretStr(DEVELOPMENT_DATABASE),
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
    )
    redis_url: SecretStr = Field(
        SecretStr(DEVELOPMENT_REDIS), validation_alias=AliasChoices("REDIS_URL", "redis_url")
    )

    host: str = "127.0.0.1"
    """Address the gRPC and metrics ports listen on."""
    port: int = Field(0, ge=0, le=65535)
    """gRPC port; 0 takes a free one. A room's config.py sets its own default and name."""
    metrics_port: int = Field(0, ge=0, le=65535)
    """Prometheus port; 0 switches it off."""
    process: int = Field(0, ge=0, le=64)
    """Which of several processes on one port this is, from 1; 0 is alone. See siblings.py."""
    transport: Literal["native", "grpcio"] = "native"
    reflection: bool = True
    """Serve gRPC reflection; never in production."""

    secret: SecretStr = SecretStr(DEVELOPMENT_SECRET)
    """At least 32 characters; every other secret of the service is derived from it."""
    service_keys: Annotated[dict[str, tuple[str, ...]], NoDecode] = {}
    """JSON: service name → SHA-256 (hex) of each key it may use, two while rotating."""
    service_key: SecretStr = SecretStr("")
    """The key this service calls others with."""

    default_deadline: float = Field(10.0, gt=0, le=300)
    """Seconds a call may take whose caller named no deadline."""
    drain_seconds: float = Field(5.0, ge=0, le=60)
    """Seconds running calls get to finish after SIGTERM."""
    max_concurrent_calls: int = Field(4096, ge=1)
    """Calls in the process at once; more are refused with OVERLOADED."""

    @field_validator("service_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError as error:
            raise ValueError('must be JSON such as {"usage": ["<sha256 hex>"]}') from error

    @field_validator("redis_url")
    @classmethod
    def _check_redis(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _refuse_development_values(self) -> Self:
        if self.env != "production":
            return self
        if self.secret.get_secret_value() == DEVELOPMENT_SECRET:
            raise ValueError("FINITY_SECRET still has its development value")
        if len(self.secret.get_secret_value()) < MINIMUM_SECRET_LENGTH:
            raise ValueError(f"FINITY_SECRET needs at least {MINIMUM_SECRET_LENGTH} characters")
        if is_development_database(self.database_url.get_secret_value()):
            raise ValueError("DATABASE_URL still has the development password")
        if _DATABASE_0.sub("", self.redis_url.get_secret_value()) == DEVELOPMENT_REDIS:
            raise ValueError("REDIS_URL still has its development value")
        if self.service_key.get_secret_value().endswith(f"_{DEVELOPMENT_KEY}"):
            raise ValueError("FINITY_SERVICE_KEY is still a development key")
        for name, digests in self.service_keys.items():
            published = f"fsk_{name}_{DEVELOPMENT_KEY}".encode()
            if hashlib.sha256(published).hexdigest() in digests:
                raise ValueError(f"FINITY_SERVICE_KEYS still has {name}'s development key")
        return self

    @property
    def own_metrics_port(self) -> int:
        """The Prometheus port of this process: each of several has the hundredth after the last."""
        return self.metrics_port and self.metrics_port + 100 * max(self.process - 1, 0)

    def derive(self, purpose: str) -> bytes:
        """Returns 32 bytes for one purpose, so that no two uses share a key."""
        return _derive(self.secret.get_secret_value(), purpose)


@functools.lru_cache(maxsize=100)
def _derive(secret: str, purpose: str) -> bytes:
    return hmac.digest(secret.encode(), f"finity:{purpose}".encode(), hashlib.sha256)


def is_development_database(url: str) -> bool:
    """Tells whether a DATABASE_URL has the password that the development stack publishes."""
    return urlsplit(url).password == urlsplit(DEVELOPMENT_DATABASE).password


def load(kind: type[S], **overrides: Any) -> S:
    """Reads the settings, or raises SettingsError with one sentence per wrong one."""
    try:
        return kind(**overrides)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        name = "_".join(str(part) for part in problem["loc"])
        variable = name if name.isupper() else f"FINITY_{name.upper()}"
        text = str(problem["msg"]).removeprefix("Value error, ")
        problems.append(f"{variable}: {text}" if name else text)
    return "; ".join(problems) + "."
