"""The call being answered, for whatever runs inside it: logs, idempotency, outgoing calls."""

import os
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

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

    def remaining(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def fields(self) -> dict[str, str]:
        """What a log line says of the call."""
        return {
            "request_id": self.request_id,
            "method": f"{self.method.service}/{self.method.name}",
            "caller": self.caller.key,
        }


def request_id(metadata: Mapping[str, object]) -> str:
    """Returns the caller's x-request-id if it is fit for a log line, else a new one."""
    given = metadata.get(REQUEST_ID)
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


_current: ContextVar[Call] = ContextVar("finity_call")


def enter(call: Call) -> None:
    """Makes `call` the current one of this task."""
    _current.set(call)


def current_call() -> Call:
    """Returns the call being answered; LookupError outside of one."""
    return _current.get()
