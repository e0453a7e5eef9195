"""The call being answered, for whatever runs inside it: logs, idempotency, outgoing calls."""

import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from random import getrandbits
from urllib.parse import unquote

from chassis.callers import Caller
from chassis.contract import Method

REQUEST_ID = "x-request-id"
# In seconds. The answer must still travel: the caller should read our refusal, not its own timer's.
DEADLINE_MARGIN = 0.02
# gRPC's clients round a deadline up on the wire: 30 s may come in as 30.1 s.
DEADLINE_ROUNDING = 0.01
_REQUEST_ID = re.compile(r"[!-~]{1,64}")


@dataclass(slots=True)
class Call:
    """The call being answered, as service code and outgoing calls may need it."""

    method: Method
    request_id: str
    caller: Caller
    ends: float
    """Monotonic time by which the answer must be ready."""
    address: Callable[[], str | None] = lambda: None
    """Returns the IP address of the client, None if unknown; see caller_address."""

    def remaining(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def fields(self) -> dict[str, str]:
        """What a log line says of the call."""
        fields = {
            "request_id": self.request_id,
            "method": f"{self.method.service}/{self.method.name}",
            "caller": self.caller.key,
        }
        if self.caller.actor is not None:
            fields["actor"] = self.caller.actor_key
        return fields


def request_id(metadata: Mapping[str, object]) -> str:
    """Returns the caller's x-request-id if it is fit for a log line, else a new one."""
    given = metadata.get(REQUEST_ID)
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    # It tells calls apart and guards nothing.
    return f"{getrandbits(128):032x}"


def caller_address(peer: str, metadata: Mapping[str, object]) -> str | None:
    """
    Returns the client's IP address, in its one spelling.

    The last hop of x-forwarded-for, which our own gateway appended, is believed
    from loopback and private networks alone; anybody else is who it connects as.
    """
    direct = _ip(_peer_host(peer))
    if direct is not None and not (direct.is_loopback or direct.is_private):
        return str(direct)
    forwarded = _ip(str(metadata.get("x-forwarded-for", "")).rpartition(",")[2].strip())
    found = forwarded or direct
    return str(found) if found else None


def _peer_host(peer: str) -> str:
    """Returns the host of gRPC's "ipv4:127.0.0.1:1234", "ipv6:[::1]:1234" or "host:port"."""
    host = unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0]
    return host.strip("[]")


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


_current: ContextVar[Call] = ContextVar("finity_call")


def enter(call: Call) -> None:
    """Makes `call` the current one of this task."""
    _current.set(call)


def current_call() -> Call:
    """Returns the call being answered; LookupError outside of one."""
    return _current.get()
