"""Where the suite is: what the environment says, or the suite that runs from this checkout."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from suite import credentials, state
from suite.errors import SuiteError
from suite.rooms import Room
from suite.supervisor import RUN_RECORD

AUTH, USAGE = Room("auth"), Room("usage")
KEY_SETTING = "FINITY_SERVICE_KEY"
GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Target:
    """A service and the key to call it with."""

    address: str
    """host:port."""
    service_key: str


def usage(environment: Mapping[str, str], directory: Path) -> Target:
    """Returns the usage service; SuiteError, saying what to set, if there is none."""
    return _service(USAGE, environment, directory)


def auth(environment: Mapping[str, str], directory: Path) -> Target:
    """Returns the auth service; SuiteError, saying what to set, if there is none."""
    return _service(AUTH, environment, directory)


def gateway(directory: Path) -> str:
    """Returns the URL of the running suite's gateway; SuiteError if none runs."""
    url = running(directory, GATEWAY)
    if not url:
        raise SuiteError(
            f"No suite runs from {directory}: start it with `make run` in another terminal."
        )
    return url


def service_key(environment: Mapping[str, str], directory: Path) -> str:
    """Returns a key that internal services call with; SuiteError if none is known."""
    if environment.get(KEY_SETTING):
        return environment[KEY_SETTING]
    if not state.is_locked(directory):
        raise SuiteError(f"Set {KEY_SETTING} to a service key of that suite.")
    return credentials.load(directory).service_keys[credentials.DEVELOPER]


def running(directory: Path, name: str) -> str:
    """Returns the address of a process of the suite that runs from here; "" if none does."""
    if not state.is_locked(directory):
        return ""
    processes = state.read(directory / RUN_RECORD).get("processes", [])
    found = (str(process["address"]) for process in processes if process["name"] == name)
    return next(found, "")


def _service(room: Room, environment: Mapping[str, str], directory: Path) -> Target:
    address = environment.get(room.address_setting) or running(directory, room.name)
    if not address:
        raise SuiteError(
            f"No suite runs from {directory}. Start one with `make run`, or set"
            f" {room.address_setting} (host:port) and {KEY_SETTING}."
        )
    return Target(address, service_key(environment, directory))
