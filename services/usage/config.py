"""What the usage room is told by its environment; read only by __main__."""

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from chassis.settings import ROOM_PORTS, ServiceSettings
from services.usage.domain.standing import Role

WHOLE = 100


class Settings(ServiceSettings):
    """Each field is a variable with the prefix FINITY_, but for the two ports named below."""

    port: int = Field(ROOM_PORTS["usage"], ge=0, le=65535, validation_alias="FINITY_USAGE_PORT")
    metrics_port: int = Field(0, ge=0, le=65535, validation_alias="FINITY_USAGE_METRICS_PORT")
    processes: int = Field(1, ge=0, le=64, validation_alias="FINITY_USAGE_PROCESSES")
    """Processes that share the port; 0 is one a core."""
    auth_address: str = f"127.0.0.1:{ROOM_PORTS['auth']}"
    """host:port of the auth service, whose keys verify access tokens."""
    issuer: str = "https://finity.ai"
    """The "iss" claim access tokens must carry."""

    signup_credits: int = Field(100, ge=0, le=1_000_000)
    """Credits a new account starts with."""
    usage_allowance_free: int = Field(0, ge=0, le=1_000_000_000)
    """Credits a free account is granted every month; 0 is none."""
    usage_allowance_pro: int = Field(0, ge=0, le=1_000_000_000)
    """The same for a pro account, and for an administrator's."""
    flush_events: int = Field(4000, ge=1, le=20_000)
    """Most events one flush writes."""
    queue_events: int = Field(50_000, ge=2000)
    """Events that may wait for a flush, twice the largest batch at least; more are refused with
    OVERLOADED."""
    sweep_seconds: float = Field(5, gt=0, le=3600)
    """Seconds between two looks for holds that are over and grants that begin or expire, in
    accounts nobody asks about."""
    retention_months: int = Field(0, ge=0, validation_alias="FINITY_USAGE_RETENTION_MONTHS")
    """Whole months of tool_usage that stay before the current one; older ones are detached. 0
    keeps all; at least 2, because events may come 35 days late."""

    @field_validator("retention_months")
    @classmethod
    def _longer_than_the_window(cls, months: int) -> int:
        if months == 1:
            raise ValueError("must be 0 or at least 2, because events may come 35 days late")
        return months

    usage_thresholds: Annotated[tuple[int, ...], NoDecode] = (80, 100)
    """Shares of a month's credits, percent, at which a user gets a mail, comma-separated; empty
    for none."""

    @field_validator("usage_thresholds", mode="before")
    @classmethod
    def _split_thresholds(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("usage_thresholds")
    @classmethod
    def _check_thresholds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= percent <= WHOLE for percent in value):
            raise ValueError("must be percentages from 1 to 100 such as 80,100")
        return value

    def allowances(self) -> dict[Role, int]:
        """Returns the monthly allowance of each role."""
        pro = self.usage_allowance_pro
        return {Role.FREE: self.usage_allowance_free, Role.PRO: pro, Role.ADMIN: pro}
