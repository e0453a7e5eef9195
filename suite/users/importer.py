"""The import of a file of users: batch by batch through ImportUsers, which is safe to repeat."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finity.auth.v1 import password_pb2, password_pb2_grpc

from chassis.channels import open_channel
from chassis.errors import Code
from chassis.status import PeerRefusal
from suite.errors import SuiteError
from suite.importing.target import KEY_SETTING, Target, running, service_key
from suite.rooms import Room
from suite.users import file

BATCH_USERS = 500
# Well under what one gRPC message may have; a line can be long.
BATCH_BYTES = 1024 * 1024
CALL_SECONDS = 20.0
# Seconds without an answer after which the service is given up.
PATIENCE = 30.0
UNREADABLE = "UNREADABLE_LINE"
_ADDRESS_SETTING = Room("auth").address_setting
_SHOWN_LINES = 5
_TRANSIENT = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED}


@dataclass(slots=True)
class Tally:
    """What became of the lines, in constant memory."""

    created: int = 0
    duplicates: int = 0
    rejected: int = 0
    causes: dict[str, list[int]] = field(default_factory=dict)
    """The first lines of each cause."""

    def reject(self, line: int, cause: str) -> None:
        self.rejected += 1
        first = self.causes.setdefault(cause, [])
        if len(first) < _SHOWN_LINES:
            first.append(line)

    def add(self, batch: list[file.Row], answer: password_pb2.ImportUsersResponse) -> None:
        """Counts the answer to a batch."""
        self.created += answer.created
        self.duplicates += answer.duplicates
        for row, result in zip(batch, answer.results, strict=True):
            if result.outcome == password_pb2.IMPORT_OUTCOME_REJECTED:
                name = password_pb2.ImportRejection.Name(result.rejection)
                self.reject(row.line, name.removeprefix("IMPORT_REJECTION_"))


def auth(environment: Mapping[str, str], directory: Path) -> Target:
    """Returns the auth service; SuiteError, saying what to set, if there is none."""
    address = environment.get(_ADDRESS_SETTING) or running(directory, "auth")
    if not address:
        raise SuiteError(
            f"No suite runs from {directory}. Start one with `make run`, or set {_ADDRESS_SETTING}"
            f" (host:port) and {KEY_SETTING}."
        )
    return Target(address, service_key(environment, directory))


async def run(path: Path, target: Target, progress: Callable[[Tally], None]) -> Tally:
    """Imports the file; SuiteError if the service cannot be reached or refuses the caller."""
    tally = Tally()
    async with open_channel(target.address, target.service_key, CALL_SECONDS) as channel:
        stub = password_pb2_grpc.PasswordServiceStub(channel)
        for batch in _batches(path, tally):
            tally.add(batch, await _send(stub, batch, target.address))
            progress(tally)
    return tally


def _batches(path: Path, tally: Tally) -> Iterator[list[file.Row]]:
    batch: list[file.Row] = []
    size = 0
    for row in file.read(path):
        if row.user is None:
            tally.reject(row.line, f"{UNREADABLE}: {row.problem}")
            continue
        if batch and (len(batch) == BATCH_USERS or size + row.user.ByteSize() > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row.user.ByteSize()
    if batch:
        yield batch


async def _send(
    stub: password_pb2_grpc.PasswordServiceStub, batch: list[file.Row], address: str
) -> password_pb2.ImportUsersResponse:
    """Sends one batch until it is answered; who was created by a lost call is a duplicate then."""
    request = password_pb2.ImportUsersRequest(users=[row.user for row in batch if row.user])
    started, pause = time.monotonic(), 0.1
    while True:
        try:
            return await stub.ImportUsers(request, timeout=CALL_SECONDS)
        except PeerRefusal as refusal:
            if refusal.code not in _TRANSIENT or time.monotonic() - started > PATIENCE:
                raise SuiteError(
                    f"The auth service at {address} does not take the users:"
                    f" {refusal.code.name} {refusal.reason}: {refusal.message} What was imported"
                    " stays; the same command goes on from there."
                ) from refusal
            await asyncio.sleep(max(refusal.retry_after or 0.0, pause) * random.uniform(1, 1.5))  # noqa: S311
            pause = min(pause * 2, 5.0)
