"""A real Envoy on a free port, and rooms behind it that answer whatever a test asks for."""

import asyncio
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import symbol_database
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from gateway.config import GatewaySettings
from gateway.envoy import command
from gateway.render import DESCRIPTORS, render
from suite.ports import free_port

ORIGIN = "https://app.example.com"
MAX_BODY = 32 * 1024
# Nobody waits for it but who means to; longer than the default, so that it shows.
TIMEOUT = 30.0
IMPATIENT = 1.0
START_SECONDS = 30


@dataclass
class Call:
    """What a room saw of a call."""

    method: str
    request: bytes
    metadata: dict[str, str]
    time_remaining: float | None

    def message(self, kind: type[Message]) -> Any:
        return kind.FromString(self.request)


@dataclass
class Rooms(grpc.GenericRpcHandler):
    """Answers every method of every room; the header x-answer says how.

    Empty: the response given in `responses`, else an empty one. "status:<n>": the gRPC
    code n and nothing else. "refusal": NOT_FOUND with an ErrorInfo. "retry": a refusal
    with a RetryInfo. "late": a bare status after the headers. "slow": no answer. "garbage": a
    message whose text is not UTF-8.
    """

    port: int = 0
    calls: list[Call] = field(default_factory=list)
    responses: dict[str, Message] = field(default_factory=dict)

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer(request: bytes, context: aio.ServicerContext[bytes, bytes]) -> bytes:
            metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
            self.calls.append(Call(details.method, request, metadata, context.time_remaining()))
            await refuse(context, metadata.get("x-answer", ""))
            if metadata.get("x-answer") == "garbage":
                return b"\x0a\x04\x12\x02\xff\xfe"
            response = self.responses.get(details.method)
            return response.SerializeToString() if response else b""

        return grpc.unary_unary_rpc_method_handler(answer)


async def refuse(context: aio.ServicerContext[bytes, bytes], answer: str) -> None:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    if answer.startswith("status:"):
        await context.abort(codes[int(answer[7:])], "driver text with 10.0.0.1")
    elif answer == "late":
        await context.send_initial_metadata(())
        await context.abort(grpc.StatusCode.INTERNAL, "driver text with 10.0.0.1")
    elif answer == "slow":
        await asyncio.sleep(30)
    elif answer in ("refusal", "retry"):
        status = refusal(answer == "retry")
        detail = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(codes[status.code], status.message, detail)


def refusal(retry: bool) -> status_pb2.Status:
    status = status_pb2.Status(code=8 if retry else 5, message='No user "7", schön.')
    info = error_details_pb2.ErrorInfo(
        reason="USER_NOT_FOUND", domain="auth.finity", metadata={"user_id": "7"}
    )
    status.details.add().Pack(info)
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="user_id", description="unknown", reason="string.uuid")
    status.details.add().Pack(bad)
    if retry:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromMilliseconds(2500)
        status.details.add().Pack(delay)
    return status


def message_class(full_name: str) -> type[Message]:
    kind: type[Message] = symbol_database.Default().GetSymbol(full_name)
    return kind


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, answer: http.client.HTTPResponse) -> "Answer":
        names = {name.lower(): value for name, value in answer.getheaders()}
        return cls(answer.status, names, answer.read())

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    port: int
    log: Path

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 60,
    ) -> Answer:
        """Sends one request on a connection of its own; a body that is not bytes becomes JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        with closing(client) as connection:
            connection.request(method, path, body, sent)
            return Answer.of(connection.getresponse())

    def raw(self, request: bytes) -> Answer:
        """Sends bytes as they are and returns the first answer."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=60)) as client:
            client.sendall(request)
            with closing(http.client.HTTPResponse(client)) as answer:
                answer.begin()
                return Answer.of(answer)

    def logged(self, request_id: str) -> dict[str, Any]:
        """Returns the access log line of a request; Envoy writes it a moment after the answer."""
        for _ in range(200):
            for line in self.log.read_text().splitlines():
                entry = json.loads(line)
                if entry["request_id"] == request_id:
                    return dict(entry)
            time.sleep(0.05)
        raise AssertionError(f"no log line for {request_id}")


@contextmanager
def running(
    folder: Path, *, edit: tuple[str, str] = ("", ""), **settings: Any
) -> Iterator[Gateway]:
    """Serves the settings; edit replaces a piece of the rendered configuration by another."""
    port = free_port()
    config = folder / "envoy.json"
    text = render(GatewaySettings(gateway_port=port, **settings), DESCRIPTORS)
    assert edit[0] in text
    config.write_text(text.replace(*edit) if edit[0] else text)
    log = folder / "access.log"
    with log.open("wb") as out, (folder / "envoy.log").open("wb") as err:
        process = subprocess.Popen(command(config, 1), stdout=out, stderr=err)  # noqa: S603
        try:
            wait_for(port, process, folder / "envoy.log")
            yield Gateway(port, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()  # frozen
                raise


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"Envoy did not start: {log.read_text()}")
