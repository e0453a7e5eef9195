"""The rooms the suite runs: the one list, in the order they start."""

from dataclasses import dataclass
from pathlib import Path

from chassis.settings import ROOM_PORTS
from suite.state import ROOT

# Prometheus ports mirror the gRPC ports: 50051 is scraped on 9051.
_METRICS_OFFSET = 41_000


@dataclass(frozen=True, slots=True)
class Room:
    """One service: how it is started and which settings move it."""

    name: str

    @property
    def module(self) -> str:
        """What `python -m` starts."""
        return f"services.{self.name}"

    @property
    def port(self) -> int:
        """The gRPC port unless `port_setting` says otherwise."""
        return ROOM_PORTS[self.name]

    @property
    def metrics_port(self) -> int:
        """The Prometheus port unless `metrics_setting` says otherwise."""
        return self.port - _METRICS_OFFSET

    @property
    def port_setting(self) -> str:
        return f"FINITY_{self.name.upper()}_PORT"

    @property
    def metrics_setting(self) -> str:
        return f"FINITY_{self.name.upper()}_METRICS_PORT"

    @property
    def address_setting(self) -> str:
        """Where the other rooms and the gateway find this one, host:port."""
        return f"FINITY_{self.name.upper()}_ADDRESS"

    @property
    def migrations(self) -> Path:
        return ROOT / "services" / self.name / "migrations"


ROOMS = (Room("auth"), Room("usage"))
