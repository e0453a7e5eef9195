"""What the usage room is told by its environment; read only by __main__."""

from pydantic import Field

from chassis.settings import ROOM_PORTS, ServiceSettings
from services.usage.domain.standing import Role


class Settings(ServiceSettings):
    """Each field is a variable with the prefix FINITY_, but for the two ports named below."""

    port: int = Field(ROOM_PORTS["usage"], ge=0, le=65535, validation_alias="FINITY_USAGE_PORT")
    metrics_port: int = Field(0, ge=0, le=65535, validation_alias="FINITY_USAGE_METRICS_PORT")
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
    queue_events: int = Field(50_000, ge=1000)
    """Events that may wait for a flush, the largest batch at least; more are refused with
    OVERLOADED."""

    def allowances(self) -> dict[Role, int]:
        """Returns the monthly allowance of each role."""
        pro = self.usage_allowance_pro
        return {Role.FREE: self.usage_allowance_free, Role.PRO: pro, Role.ADMIN: pro}
