"""What calls carry: the same few bodies again and again, or new events that were never sent."""

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

# Stand where a template's event and user ids come; as long as the ids they are replaced by.
EVENT_ID = "00000000-0000-7000-8000-00000000beef"
USER_ID = "00000000-0000-0000-0000-00000000cafe"
# Ids carry time: so many share a millisecond, as if callers made them at this pace.
_EVENTS_PER_MS = 10
_RANDOM_BITS = 74


class Bodies(Protocol):
    """Makes bodies where they are sent: they never travel between processes."""

    def make(self, seconds: float) -> Iterator[bytes]:
        """Returns the bodies of a run of so many seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Repeated:
    """A few bodies in turn, without end."""

    bodies: tuple[bytes, ...]

    def make(self, seconds: float) -> Iterator[bytes]:
        return itertools.cycle(self.bodies)


@dataclass(frozen=True, slots=True)
class Events:
    """New events of random users in bodies made from a template."""

    template: bytes
    """One event in its wire form, EVENT_ID and USER_ID in place of the ids."""
    users: Sequence[str]
    per_body: int
    most_per_second: int
    """Bodies made for each second: more than any server answers."""

    def make(self, seconds: float) -> Iterator[bytes]:
        count = max(1, int(seconds * self.most_per_second))
        events = self._events(count * self.per_body)
        # All of them now: making them must cost nothing while the clock runs.
        return iter([b"".join(itertools.islice(events, self.per_body)) for _ in range(count)])

    def _events(self, count: int) -> Iterator[bytes]:
        head, _, rest = self.template.partition(EVENT_ID.encode())
        middle, _, tail = rest.partition(USER_ID.encode())
        users = [user.encode() for user in self.users]
        for event_id in event_ids(count):
            yield b"".join((head, event_id.encode(), middle, random.choice(users), tail))  # noqa: S311


@dataclass(frozen=True, slots=True)
class Pairs:
    """Bodies in twos: a new reservation of a random user, then what resolves it."""

    first: bytes
    """In its wire form, EVENT_ID and USER_ID in place of the ids."""
    second: bytes
    """With EVENT_ID alone."""
    users: Sequence[str]
    most_per_second: int
    """Pairs made for each second: more than any server answers."""

    def make(self, seconds: float) -> Iterator[bytes]:
        count = max(1, int(seconds * self.most_per_second))
        # All of them now: making them must cost nothing while the clock runs.
        return iter([body for new_id in event_ids(count) for body in self._pair(new_id.encode())])

    def _pair(self, new_id: bytes) -> tuple[bytes, bytes]:
        user = random.choice(self.users).encode()  # noqa: S311
        first = self.first.replace(USER_ID.encode(), user)
        place = EVENT_ID.encode()
        return first.replace(place, new_id), self.second.replace(place, new_id)


def event_ids(count: int) -> Iterator[str]:
    """Yields so many new UUIDv7 (RFC 9562) in order of time, the last one of now."""
    first = time.time_ns() // 1_000_000 - count // _EVENTS_PER_MS
    for index in range(count):
        time_ms = first + index // _EVENTS_PER_MS
        noise = random.getrandbits(_RANDOM_BITS)
        text = f"{time_ms << 80 | 7 << 76 | (noise >> 62) << 64 | 2 << 62 | noise & _LOW:032x}"
        yield f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_LOW = (1 << 62) - 1
