"""The rows of the table: what is called, how, and who counts."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from finity.auth.v1 import auth_pb2
from finity.usage.v1 import reservation_pb2, usage_pb2

from benchmarks.bed import KINDS, TRANSPORTS, Bed, cores
from benchmarks.bodies import EVENT_ID, USER_ID, Bodies, Events, Pairs, Repeated
from benchmarks.copying import Copying
from benchmarks.counters import Answered, Counter, Handled, Rows
from benchmarks.empty import METHOD, SERVICE
from benchmarks.seed import PASSWORD, People
from benchmarks.watching import Watching
from benchmarks.work import Calls, H2load, Hashing, Stormed, Verifying, Work
from chassis.dsn import parse_dsn
from services.auth.config import Settings

AUTH, USAGE = "/finity.auth.v1.AuthService/", "/finity.usage.v1.UsageService/"
RESERVATIONS = "/finity.usage.v1.ReservationService/"
LINES, PLACES = 4, 16
# Metered calls: from a few callers to a house that is full for any of the servers measured.
FEW, MANY = 64, 128
HOUSES = (FEW, MANY, 192, 256, 320)
# Pairs of calls: each is two flushes long.
PAIRS_AT_ONCE = 256
BATCH = 1000
PEER, NODE_PEER = "FastAPI + SQLAlchemy", "Fastify + Prisma"
RECORD, BATCHES, HASHING = "RecordUsage", "RecordUsageBatch", "argon2id alone"
INGEST, ALONE, BALANCE = "IngestUsage", "RecordUsage, one at a time", "GetBalance"
COPY, BIG_COPY = "COPY, 1,000 rows each", "COPY, one for all"
SODIUM = "argon2id alone, libsodium"
PAIRS, HOT_PAIRS = "Reserve + Commit", "Reserve + Commit, one user"
WATCH, WATCH_OTHER = "WatchBalance", "WatchBalance, of another process"
CALLS, EVENTS = "calls/s", "events/s"
VALIDATE, CHECK = "ValidateToken", "FastAPI + PyJWT + SQLAlchemy"
VERIFIER = "a verifier, in its process"
QUIET, STORMED = "ValidateToken, few", "ValidateToken, few, in a storm of logins"
# Bodies made for a second of a run: a multiple of what was ever answered.
_MOST_CALLS, _MOST_BATCHES = 30_000, 100
_LOGGING_IN = 64
_MOST_PAIRS = 15_000
_WATCHED = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    name: str
    transport: str
    work: Work
    in_flight: int
    counter: Counter | None
    """None: the client's own count holds, for there is no server."""
    rows: Counter | None = None
    """Rows in the database, which must grow by as much."""
    each: int = 1
    """Events a call carries."""
    client: str = "ours"
    unit: str = CALLS


def every(bed: Bed, people: People) -> list[Row]:
    """Returns the rows in the order they are measured; those compared stand close together."""
    service = (("authorization", f"Bearer {bed.service_key}"),)
    return [
        *_empty(bed),
        *_records(bed, people, service),
        *_in_bulk(bed, people, service),
        *_pairs(bed, people, service),
        *_reads(bed, people, service),
        *_watched(bed, people, service),
        *_tokens(bed, people, service),
    ]


def _empty(bed: Bed) -> Iterator[Row]:
    path = f"/{SERVICE}/{METHOD}"
    for transport in TRANSPORTS:
        for kind in KINDS:
            place = bed.empty[transport, kind]
            work = Calls("grpc", place.address, path, (), Repeated((b"",)), LINES, PLACES)
            yield Row(
                f"empty call, {kind}", transport, work, LINES * PLACES, Handled(place, METHOD)
            )
        if shutil.which("h2load"):
            place = bed.empty[transport, "bare"]
            yield Row(
                "empty call, bare",
                transport,
                H2load(place.address, path, LINES, PLACES),
                LINES * PLACES,
                Handled(place, METHOD),
                client="h2load",
            )


def _records(bed: Bed, people: People, service: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    single = _events(usage_pb2.RecordUsageRequest(event=_event()).SerializeToString(), people)
    as_json = _events(json.dumps(_JSON, separators=(",", ":")).encode(), people)
    written = Rows("tool_usage")
    for transport, in_flight in (*(("native", each) for each in HOUSES), ("grpcio", MANY)):
        place = bed.usage[transport]
        places = in_flight // LINES
        work = Calls("grpc", place.address, USAGE + RECORD, service, single, LINES, places)
        yield Row(RECORD, transport, work, in_flight, Handled(place, RECORD), written)
    envoy = Calls("json", bed.gateway.address, "/v1/usage", service, as_json, MANY)
    counter = Handled(bed.usage["native"], RECORD)
    yield Row(RECORD, "JSON, Envoy", envoy, MANY, counter, written)
    for processes, place in bed.peers.items():
        for in_flight in HOUSES:
            peer = Calls("json", place.address, "/v1/usage", (), as_json, in_flight)
            name = PEER if processes == 1 else f"{PEER}, {processes} processes"
            yield Row(name, "JSON", peer, in_flight, Rows("peer_usage"))
    if bed.node:
        for in_flight in HOUSES:
            peer = Calls("json", bed.node.address, "/v1/usage", (), as_json, in_flight)
            yield Row(NODE_PEER, "JSON", peer, in_flight, Rows("peer_usage"))
    native = bed.usage["native"]
    work = Calls("grpc", native.address, USAGE + RECORD, service, single, 1, 1)
    yield Row(ALONE, "native", work, 1, Handled(native, RECORD), written)


def _in_bulk(bed: Bed, people: People, service: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    """Yields what is compared with COPY, and COPY right beside."""
    written, copied = Rows("tool_usage"), Rows("copy_usage")
    url = parse_dsn(bed.database_url).url
    batch = usage_pb2.RecordUsageBatchRequest(events=[_event()]).SerializeToString()
    bodies = Events(batch, people.ids, BATCH, _MOST_BATCHES)
    native = bed.usage["native"]
    lines, places = 4, 2
    work = Calls("grpc", native.address, USAGE + BATCHES, service, bodies, lines, places)
    counter = Handled(native, BATCHES)
    yield Row(BATCHES, "native", work, lines * places, counter, written, each=BATCH, unit=EVENTS)
    ingested = usage_pb2.IngestUsageRequest(events=[_event()]).SerializeToString()
    bodies = Events(ingested, people.ids, BATCH, _MOST_BATCHES)
    work = Calls("stream", native.address, USAGE + INGEST, service, bodies, lines, places)
    yield Row(INGEST, "native", work, lines * places, written, unit=EVENTS)
    for name, rows in ((COPY, BATCH), (BIG_COPY, 0)):
        work_of = Copying(url, people.ids, rows)
        yield Row(name, "SQL", work_of, 1, copied, unit=EVENTS)


def _reads(bed: Bed, people: People, service: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    native = bed.usage["native"]
    asked = Repeated(
        tuple(
            usage_pb2.GetBalanceRequest(user_id=user_id).SerializeToString()
            for user_id in people.ids
        )
    )
    work = Calls("grpc", native.address, USAGE + BALANCE, service, asked, LINES, PLACES)
    yield Row(BALANCE, "native", work, FEW, Handled(native, BALANCE))


def _pairs(bed: Bed, people: People, service: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    native, first, second = bed.usage["native"], "ReserveCredits", "CommitReservation"
    reserve = reservation_pb2.ReserveCreditsRequest(
        reservation_id=EVENT_ID, user_id=USER_ID, tool_name="rewrite", credits=1
    ).SerializeToString()
    commit = reservation_pb2.CommitReservationRequest(
        reservation_id=EVENT_ID, credits=1
    ).SerializeToString()
    for name, users in ((PAIRS, people.ids), (HOT_PAIRS, people.ids[:1])):
        work = Calls(
            "grpc",
            native.address,
            RESERVATIONS + first,
            service,
            Pairs(reserve, commit, users, _MOST_PAIRS),
            LINES,
            PAIRS_AT_ONCE // LINES,
            then=RESERVATIONS + second,
        )
        counter, written = Handled(native, second), Rows("tool_usage")
        yield Row(name, "native", work, PAIRS_AT_ONCE, counter, written, unit="pairs/s")


def _watched(bed: Bed, people: People, service: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    native, other = bed.usage["native"], bed.usage["grpcio"]
    for name, changed in ((WATCH, native), (WATCH_OTHER, other)):
        work = Watching(native.address, changed.address, service, people.ids[:_WATCHED])
        counter, written = Handled(changed, RECORD), Rows("tool_usage")
        yield Row(name, "native", work, 1, counter, written, unit="changes/s")


def _tokens(bed: Bed, people: People, service: tuple[tuple[str, str], ...]) -> Iterator[Row]:
    auth, presented = bed.auth, {"token": people.access_token}
    path, validated = f"{AUTH}{VALIDATE}", Handled(auth, VALIDATE)
    tokens = Repeated((auth_pb2.ValidateTokenRequest(**presented).SerializeToString(),))
    work = Calls("grpc", auth.address, path, service, tokens, LINES, PLACES)
    yield Row(VALIDATE, "native", work, FEW, validated)
    as_json = Repeated((json.dumps(presented).encode(),))
    for in_flight in (FEW, MANY):
        check = Calls("json", bed.check.address, "/v1/tokens:validate", (), as_json, in_flight)
        yield Row(CHECK, "JSON", check, in_flight, Answered(bed.check))
    issuer = Settings.model_fields["issuer"].default
    verifying = Verifying(auth.address, bed.service_key, issuer, people.access_token)
    yield Row(VERIFIER, "-", verifying, 1, None)
    logins = Repeated(
        tuple(
            auth_pb2.LoginRequest(email=email, password=PASSWORD).SerializeToString()
            for email in people.emails[:_LOGGING_IN]
        )
    )
    storm = Calls("grpc", auth.address, f"{AUTH}Login", (), logins, LINES, 4)
    yield Row("Login", "native", storm, LINES * 4, Handled(auth, "Login"))
    threads = cores()
    password = (PASSWORD, people.password_hash, threads)
    yield Row(HASHING, "-", Hashing(*password, "argon2-cffi"), threads, None)
    yield Row(SODIUM, "-", Hashing(*password, "libsodium"), threads, None)
    few = Calls("grpc", auth.address, path, service, tokens, LINES, 1)
    yield Row(QUIET, "native", few, LINES, validated)
    yield Row(STORMED, "native", Stormed(few, storm), LINES, validated)


def _event() -> usage_pb2.UsageEvent:
    return usage_pb2.UsageEvent(event_id=EVENT_ID, user_id=USER_ID, tool_name="rewrite", credits=1)


_JSON = {"event_id": EVENT_ID, "user_id": USER_ID, "tool_name": "rewrite", "credits": 1}


def _events(template: bytes, people: People) -> Bodies:
    return Events(template, people.ids, 1, _MOST_CALLS)
