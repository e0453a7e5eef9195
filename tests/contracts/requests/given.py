"""What requests may be about."""

from dataclasses import dataclass

from finity.usage.v1 import usage_pb2

from chassis.clock import Clock
from chassis.ids import uuid7
from tests.running import House, Metadata, Person


@dataclass(frozen=True, slots=True)
class Given:
    """What requests may be about."""

    house: House
    clock: Clock
    somebody: Person
    """A user who is logged in and has an account."""
    subject: str = ""
    """Whom a request with a subject names."""
    metadata: Metadata = ()
    """The credentials it will be sent with, for what only its preparer can finish."""
    caller: Person | None = None
    """The user who is going to make the call, if it is one."""

    def event(self) -> usage_pb2.UsageEvent:
        return usage_pb2.UsageEvent(
            event_id=str(uuid7(self.clock.now())),
            user_id=self.somebody.user_id,
            tool_name="contract",
            credits=0,
        )
