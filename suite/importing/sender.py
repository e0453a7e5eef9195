"""One batch to the usage service, again and again until it is answered."""

import asyncio
import random
import time

from finity.usage.v1 import usage_pb2, usage_pb2_grpc

from chassis.errors import Code
from chassis.status import PeerRefusal
from suite.errors import SuiteError
from suite.importing.rows import Batch
from suite.importing.target import KEY_SETTING

CALL_SECONDS = 20.0
FIRST_PATIENCE = 3.0
"""Seconds without an answer after which a service that never gave one is given up."""
PATIENCE = 60.0
"""The same for a service that has answered before."""
_LONGEST_PAUSE = 5.0
# Event ids make all of these safe to send again.
_TRANSIENT = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED}
_KEYLESS = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}


class Sender:
    """Sends batches over one channel."""

    def __init__(self, stub: usage_pb2_grpc.UsageServiceStub, address: str) -> None:
        self._stub = stub
        self._address = address
        self._answered: float | None = None
        self._started = time.monotonic()

    async def send(self, batch: Batch) -> list[usage_pb2.UsageResult]:
        """Returns a result per event; SuiteError once there is no use in trying on."""
        request = usage_pb2.RecordUsageBatchRequest(events=batch.events)
        pause = 0.1
        while True:
            try:
                answer = await self._stub.RecordUsageBatch(request, timeout=CALL_SECONDS)
            except PeerRefusal as refusal:
                self._require_hope(refusal)
                wait = max(refusal.retry_after or 0.0, pause)
            else:
                self._answered = time.monotonic()
                return list(answer.results)
            # Batches that were refused together must not come back together.
            await asyncio.sleep(wait * random.uniform(1.0, 1.5))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _require_hope(self, refusal: PeerRefusal) -> None:
        if refusal.code in _KEYLESS:
            raise SuiteError(
                f"The usage service at {self._address} refuses the service key:"
                f" {refusal.message} Correct {KEY_SETTING}."
            )
        if refusal.code not in _TRANSIENT:
            raise SuiteError(
                f"The usage service at {self._address} cannot take a batch: {refusal.code.name}"
                f" {refusal.reason}: {refusal.message}"
            )
        patience = FIRST_PATIENCE if self._answered is None else PATIENCE
        if time.monotonic() - (self._answered or self._started) > patience:
            raise SuiteError(
                f"The usage service at {self._address} gave no answer for {patience:.0f} s"
                f" ({refusal.reason}). What it acknowledged is recorded; the same command goes on"
                " from there."
            )
