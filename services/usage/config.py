"""What the usage room is told by its environment; read only by __main__."""

from pydantic import Field

from chassis.settings import ROOM_PORTS, ServiceSettings


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
    flush_events: int = Field(4000, ge=1, le=20_000)
    """Most events one flush writes."""
    queue_events: int = Field(50_000, ge=1000)
    """Events that may wait for a flush, the largest batch at least; more are refused with
    OVERLOADED."""
