"""Where everything listens: the defaults, moved by the settings, or free ports for tests."""

from collections.abc import Mapping
from dataclasses import dataclass

from suite import ports
from suite.errors import SuiteError
from suite.rooms import ROOMS, Room

GATEWAY_SETTING = "FINITY_GATEWAY_PORT"
GATEWAY_HOST_SETTING = "FINITY_GATEWAY_HOST"
HOST_SETTING = "FINITY_HOST"
GATEWAY_PORT = 8080
_ANY = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Addresses:
    """One host for the services, one for the gateway, and a port for each setting."""

    host: str
    gateway_host: str
    ports: dict[str, int]
    """Name of the setting → port."""

    def of(self, room: Room) -> str:
        """host:port of a room's gRPC server as this machine reaches it."""
        return f"{reachable(self.host)}:{self.ports[room.port_setting]}"

    def metrics_of(self, room: Room) -> str:
        """URL of a room's Prometheus text; "" where it is off."""
        if not self.ports[room.metrics_setting]:
            return ""
        return f"http://{reachable(self.host)}:{self.ports[room.metrics_setting]}/metrics"

    @property
    def gateway_port(self) -> int:
        return self.ports[GATEWAY_SETTING]

    @property
    def gateway_url(self) -> str:
        return f"http://{reachable(self.gateway_host)}:{self.gateway_port}"

    def environment(self) -> dict[str, str]:
        """The settings that tell every process of the suite where all of them are."""
        numbers = {setting: str(port) for setting, port in self.ports.items()}
        peers = {room.address_setting: self.of(room) for room in ROOMS}
        hosts = {HOST_SETTING: self.host, GATEWAY_HOST_SETTING: self.gateway_host}
        return numbers | peers | hosts

    def require_free(self) -> None:
        """Raises SuiteError, naming the setting, for the first port that is taken."""
        for setting, port in self.ports.items():
            host = self.gateway_host if setting == GATEWAY_SETTING else self.host
            if port:
                ports.require_free(port, host, setting)


def reachable(host: str) -> str:
    """Returns an address that leads to a server listening on `host`."""
    return ports.LOOPBACK if host in _ANY else host


def from_environment(environment: Mapping[str, str]) -> Addresses:
    """
    Reads the settings; SuiteError for one that is no port.

    0 takes a free port for the gateway and gRPC, and switches metrics off.
    """
    numbers = {GATEWAY_SETTING: _port(environment, GATEWAY_SETTING, GATEWAY_PORT)}
    for room in ROOMS:
        numbers[room.port_setting] = _port(environment, room.port_setting, room.port)
    spare = ports.free_ports(len(numbers))
    numbers = {setting: port or spare.pop() for setting, port in numbers.items()}
    for room in ROOMS:
        numbers[room.metrics_setting] = _port(environment, room.metrics_setting, room.metrics_port)
    return Addresses(
        host=environment.get(HOST_SETTING) or ports.LOOPBACK,
        gateway_host=environment.get(GATEWAY_HOST_SETTING) or ports.LOOPBACK,
        ports=numbers,
    )


def free() -> Addresses:
    """Takes a free port of the loopback for everything."""
    settings = [GATEWAY_SETTING]
    settings += [name for room in ROOMS for name in (room.port_setting, room.metrics_setting)]
    numbers = dict(zip(settings, ports.free_ports(len(settings)), strict=True))
    return Addresses(host=ports.LOOPBACK, gateway_host=ports.LOOPBACK, ports=numbers)


def _port(environment: Mapping[str, str], setting: str, default: int) -> int:
    value = environment.get(setting) or str(default)
    if not value.isdecimal() or int(value) > _LARGEST_PORT:
        raise SuiteError(f"{setting} must be a port, 0 to {_LARGEST_PORT}, not {value!r}.")
    return int(value)
