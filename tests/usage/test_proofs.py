"""VerifyLedger: what adds up is found to, whatever is tampered with is found not to."""

import asyncio
import itertools
from collections.abc import Awaitable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY

from chassis.postgres import Connection, Database
from chassis.refusals import Conflict
from services.usage import worker
from services.usage.domain.proofs import hour_of
from services.usage.errors import UsageNotFound
from services.usage.service import proofs as service
from services.usage.service.ledger import Act
from services.usage.service.proofs import Proof, months_back
from services.usage.service.use_cases import UseCases
from tests.factories import (
    eventually,
    ledger_faults,
    make_account,
    make_event,
    make_terms,
    make_user,
    open_usage,
    reason_of,
)
from tests.fakes import FakeClock
from tests.suite.terminal import finity

ACT = Act("service:test", "because")
# Each is done past every guard; what must be found.
TAMPERED = [
    ("UPDATE credit_accounts SET granted = granted + 5", {"balance", "granted", "grants"}),
    ("UPDATE credit_accounts SET version = version + 1", {"version"}),
    ("UPDATE credit_accounts SET debt = debt + 1", {"grants"}),
    ("UPDATE credit_accounts SET reserved = 1, granted = granted + 1", {"granted", "holds"}),
    ("UPDATE credit_accounts SET used = used + 1, granted = granted + 1", {"granted", "used"}),
    (
        "UPDATE credit_grants SET remaining = remaining - 1 WHERE source_ref = 'start'",
        {"grants", "draws"},
    ),
    ("UPDATE credit_entries SET amount = amount - 1 WHERE kind = 'use'", {"chain", "balance"}),
    ("UPDATE credit_entries SET balance_after = 1 WHERE kind = 'use'", {"chain"}),
    ("UPDATE credit_entries SET drawn = '{3}' WHERE kind = 'use'", {"draws"}),
    (
        "UPDATE credit_entries SET grant_ids = ARRAY[gen_random_uuid()] WHERE kind = 'use'",
        {"draws"},
    ),
    ("DELETE FROM credit_entries WHERE kind = 'use'", {"chain", "draws", "balance"}),
    ("UPDATE tool_usage SET credits_used = credits_used + 1", {"usage"}),
    ("DELETE FROM tool_usage", {"usage", "calls"}),
    ("UPDATE usage_rollups SET credits = credits + 1", {"used", "usage"}),
    ("DELETE FROM usage_corrections", {"usage"}),
]


async def busy_account(usage: UseCases, owner: Connection, clock: FakeClock) -> UUID:
    """An account with some of everything."""
    user_id = await make_account(owner, clock, credits=100)
    clock.advance(seconds=1)
    event = make_event(user_id, clock.now(), credits=7)
    await usage.metering.record([event])
    await usage.ledger.correct_usage(user_id, 2, ACT, event_id=event.id)
    ends = clock.now() + timedelta(days=1)
    await usage.accounts.grant(user_id, make_terms(source_ref="ends", amount=3, expires_at=ends))
    clock.advance(days=2)
    await usage.ledger.adjust_credits(user_id, 5, ACT)
    return user_id


async def tamper(owner: Connection, statement: str) -> None:
    await owner.execute("SET session_replication_role = replica")
    await owner.execute(statement)
    await owner.execute("SET session_replication_role = origin")


async def checked(usage: UseCases) -> Proof:
    """Proves what changed."""
    return await usage.proofs.verify_changed(None)


def names(proof: Proof) -> set[str]:
    return {str(fault.check) for fault in proof.faults}


async def test_what_changed_is_proven_from_where_it_was(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Accounts are looked at after each change, go on from their last proof and are sound."""
    user_id = await busy_account(usage, owner, clock)
    idle = await make_account(owner, clock)
    assert await checked(usage) == (2, [], None)
    assert (await checked(usage)).accounts == 0
    event = make_event(user_id, clock.now(), credits=99)
    await usage.metering.record([event])
    assert (await checked(usage))[:2] == (1, [])
    await usage.ledger.correct_usage(user_id, 99, ACT, event_id=event.id)
    later = make_terms(source_ref="later", effective_at=clock.now() + timedelta(days=1))
    await usage.accounts.grant(user_id, later)
    assert (await checked(usage))[:2] == (1, [])
    clock.advance(days=40)
    await usage.accounts.get_balance(user_id)
    await usage.metering.record([make_event(user_id, clock.now(), credits=150)])
    # The idle one too: the hour in which it was opened was not over when it was looked at.
    assert (await checked(usage))[:2] == (2, [])
    version = "SELECT version FROM usage_verifications WHERE user_id = $1"
    current = "SELECT version FROM credit_accounts WHERE user_id = $1"
    for user in (user_id, idle):
        assert await owner.fetchval(version, user) == await owner.fetchval(current, user)
    assert (await usage.proofs.verify_account(user_id)).faults == []


@pytest.mark.parametrize(("statement", "expected"), TAMPERED)
async def test_whatever_is_tampered_with_is_found(
    usage: UseCases, owner: Connection, clock: FakeClock, statement: str, expected: set[str]
) -> None:
    """Each sum that was bent is named, by its account and check, and counted until it is mended."""
    user_id = await busy_account(usage, owner, clock)
    await tamper(owner, statement)
    proof = await usage.proofs.verify_account(user_id)
    assert names(proof) == expected
    assert {fault.user_id for fault in proof.faults} == {user_id}
    assert await usage.proofs.count_unsound() == 1


async def test_a_proof_goes_on_from_the_last_good_one(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """What is bent after a proof is found by the next; it stays a fault until it is mended."""
    user_id = await busy_account(usage, owner, clock)
    await checked(usage)
    bend = "UPDATE credit_grants SET remaining = remaining - 1 WHERE source_ref = 'start'"
    await tamper(owner, bend)
    for _ in range(2):
        proof = await usage.proofs.verify_page(None, 10, whole=False)
        assert proof.accounts == 0
        await tamper(owner, "UPDATE usage_verifications SET seen_version = 0")
        proof = await checked(usage)
        assert names(proof) == {"grants", "draws"}
        assert await usage.proofs.count_unsound() == 1
    await tamper(owner, bend.replace("- 1", "+ 1"))
    assert (await usage.proofs.verify_account(user_id)).faults == []
    assert await usage.proofs.count_unsound() == 0


async def test_calls_are_counted_once_their_hour_is_over(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """The worker leaves the running hour to the next one, though nothing else changes by then."""
    user_id = await make_account(owner, clock, credits=100)
    await usage.metering.record([make_event(user_id, clock.now(), credits=7)])
    await tamper(owner, "DELETE FROM tool_usage")
    assert (await checked(usage))[:2] == (1, [])
    clock.advance(hours=1)
    assert names(await checked(usage)) == {"usage", "calls"}
    assert (await checked(usage)).accounts == 0


async def test_who_asks_gets_the_running_hour(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """VerifyLedger waits for no hour to end."""
    user_id = await make_account(owner, clock, credits=100)
    await usage.metering.record([make_event(user_id, clock.now(), credits=7)])
    await tamper(owner, "DELETE FROM tool_usage")
    assert names(await usage.proofs.verify_page(None, 10, whole=False)) == {"usage", "calls"}


async def test_calls_dated_ahead_are_counted(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """A call may be of an hour that had not begun when its account changed."""
    user_id = await make_account(owner, clock, credits=100)
    hour = hour_of(clock.now()) + timedelta(hours=1)
    clock.move_to(hour - timedelta(minutes=2))
    ahead = make_event(user_id, hour + timedelta(minutes=2), credits=7)
    await usage.metering.record([ahead])
    clock.advance(minutes=3)
    assert (await checked(usage))[:2] == (1, [])
    await tamper(owner, "DELETE FROM tool_usage")
    clock.advance(hours=1)
    assert names(await checked(usage)) == {"usage", "calls"}


async def test_what_was_being_written_is_counted_next_time(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """A transaction that is older than a proof and ends after it is not taken for proven."""
    user_id = await make_account(owner, clock, credits=100)
    await usage.metering.record([make_event(user_id, clock.now(), credits=7)])
    clock.advance(hours=2)
    assert (await checked(usage))[:2] == (1, [])
    async with owner.transaction():
        await owner.execute("UPDATE usage_rollups SET calls = calls + 1")
        await usage.metering.record([make_event(user_id, clock.now(), credits=1)])
        clock.advance(hours=1)
        assert (await checked(usage))[:2] == (1, [])
    await usage.metering.record([make_event(user_id, clock.now(), credits=1)])
    assert names(await checked(usage)) == {"calls"}


async def test_calls_that_come_late_are_counted(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """An hour whose sums changed is counted again, however long ago it was."""
    user_id = await make_account(owner, clock, credits=100)
    await usage.metering.record([make_event(user_id, clock.now(), credits=7)])
    clock.advance(hours=2)
    assert (await checked(usage))[:2] == (1, [])
    late = make_event(user_id, clock.now() - timedelta(days=10), credits=5)
    await usage.metering.record([late])
    await tamper(owner, "UPDATE tool_usage SET credits_used = 4 WHERE credits_used = 5")
    assert names(await checked(usage)) == {"usage"}


OVER = (
    "SELECT min(age(xmin)) > age(pg_snapshot_xmin(pg_current_snapshot())::xid) FROM usage_rollups"
)


async def lost_and_proven(usage: UseCases, owner: Connection, clock: FakeClock) -> UUID:
    """An account whose calls were lost after they were counted."""
    user_id = await make_account(owner, clock, credits=100)
    await usage.metering.record([make_event(user_id, clock.now(), credits=7)])
    # The hour is not done with while a transaction of any database is older than its sums.
    await eventually(partial(owner.fetchval, OVER))
    clock.advance(hours=2)
    assert (await checked(usage))[:2] == (1, [])
    await tamper(owner, "DELETE FROM tool_usage")
    await usage.metering.record([make_event(user_id, clock.now(), credits=1)])
    return user_id


async def test_every_call_is_counted_once_a_day(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Hours that did not change are not counted with each proof; with that of the next day."""
    user_id = await lost_and_proven(usage, owner, clock)
    clock.advance(hours=1)
    assert (await checked(usage))[:2] == (1, [])
    clock.advance(days=1)
    await usage.metering.record([make_event(user_id, clock.now(), credits=1)])
    assert names(await checked(usage)) == {"usage", "calls"}


async def test_a_loss_once_found_stays_a_fault(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Though its hour does not change, the proofs after the one that found it count it too."""
    user_id = await lost_and_proven(usage, owner, clock)
    assert names(await usage.proofs.verify_account(user_id)) == {"usage", "calls"}
    await usage.metering.record([make_event(user_id, clock.now(), credits=1)])
    assert names(await checked(usage)) == {"usage", "calls"}
    assert await usage.proofs.count_unsound() == 1


async def test_every_call_is_counted_after_a_restore(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """Where transactions have lower numbers than at the last proof nothing follows from those."""
    await lost_and_proven(usage, owner, clock)
    await owner.execute(
        "UPDATE usage_verifications"
        " SET seen_xmin = ((pg_current_xact_id()::text::bigint + 1000)::text)::xid"
    )
    assert names(await checked(usage)) == {"usage", "calls"}


async def test_every_account_is_reached_in_pages(
    usage: UseCases, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages and batches of any size end, and leave nobody out."""
    users = sorted([await make_account(owner, clock, credits=1) for _ in range(7)])
    after, seen = None, 0
    while True:
        proof = await usage.proofs.verify_page(after, 3, whole=True)
        seen, after = seen + proof.accounts, proof.last
        if after is None:
            break
    assert seen == len(users)
    await tamper(owner, "UPDATE usage_verifications SET seen_version = -1")
    monkeypatch.setattr(service, "PAGE", 4)
    monkeypatch.setattr(service, "BATCH", 3)
    after, sizes = None, []
    while True:
        proof = await usage.proofs.verify_changed(after)
        sizes.append(proof.accounts)
        after = proof.last
        if after is None:
            break
    assert sum(sizes) == len(users)
    assert max(sizes) == 3
    nobody = (await make_user(owner, clock)).id
    assert await reason_of(usage.proofs.verify_account(nobody)) == "ACCOUNT_NOT_OPEN"


async def test_the_worker_counts_what_drifts(
    usage: UseCases, owner: Connection, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric is the number of accounts that do not add up, while calls go on."""
    for _ in range(3):
        await make_account(owner, clock, credits=10)
    await tamper(owner, "UPDATE credit_grants SET remaining = 9")
    monkeypatch.setattr(worker, "ROUND_SECONDS", 0.05)

    async def drift(expected: float) -> bool:
        return REGISTRY.get_sample_value("finity_usage_ledger_drift") == expected

    task = asyncio.create_task(worker.verify_forever(usage.proofs))
    try:
        await eventually(lambda: drift(3))
        await tamper(owner, "UPDATE credit_grants SET remaining = 10")
        await owner.execute("UPDATE usage_verifications SET seen_version = -1")
        await eventually(lambda: drift(0))
    finally:
        task.cancel()


async def test_a_proof_sees_one_moment(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """While two processes record and correct, no proof finds what is only half written."""
    async with open_usage(usage_database, clock) as one, open_usage(usage_database, clock) as two:
        users = [await make_account(owner, clock, credits=10**6) for _ in range(3)]
        done, proven = asyncio.Event(), 0

        async def call(room: UseCases) -> None:
            for number in itertools.count():
                if number >= 40 and (proven > 10 or proving.done()):
                    return
                user_id = users[number % len(users)]
                event = make_event(user_id, clock.now(), credits=3)
                await settled(room.metering.record([event]))
                await settled(room.ledger.correct_usage(user_id, 1, ACT, event_id=event.id))

        async def prove() -> None:
            nonlocal proven
            while not done.is_set():
                proof = await settled(one.proofs.verify_page(None, 10, whole=proven % 2 == 0))
                if proof:
                    assert list(proof.faults) == []
                    proven += 1

        proving = asyncio.create_task(prove())
        async with asyncio.timeout(60):
            await asyncio.gather(call(one), call(two))
            done.set()
            await proving
        assert proven > 10
    assert await ledger_faults(owner) == []


async def settled(call: Awaitable[Any]) -> Any:
    """Awaits a call that may meet another; None if it did."""
    try:
        return await call
    except (Conflict, UsageNotFound):
        return None


async def test_one_process_proves_at_a_time(
    usage: UseCases, owner: Connection, clock: FakeClock
) -> None:
    """While another holds the lock nothing is looked at, and nobody waits."""
    await make_account(owner, clock, credits=1)
    async with owner.transaction():
        await owner.fetchval("SELECT pg_advisory_xact_lock(hashtext('usage_verifications'))")
        assert (await checked(usage)).accounts == 0
    assert (await checked(usage)).accounts == 1


async def test_months_are_detached_and_everything_still_adds_up(
    usage_database: Database, owner: Connection, clock: FakeClock
) -> None:
    """Old months leave tool_usage as tables that keep their rows; sums by hour stay and balance."""
    today = clock.now()
    clock.advance(days=-200)
    async with open_usage(usage_database, clock) as usage:
        user_id = await make_account(owner, clock, credits=100)
        old = make_event(user_id, clock.now(), credits=7)
        await usage.metering.record([old, make_event(user_id, clock.now(), credits=5)])
        await usage.ledger.correct_usage(user_id, 2, ACT, event_id=old.id)
        clock.move_to(today)
        await usage.metering.make_partitions()
        recent = make_event(user_id, clock.now(), credits=3)
        await usage.metering.record([recent])
        before = await owner.fetchval("SELECT min(timestamp) FROM tool_usage")
        await owner.execute("ANALYZE")
        detached: list[str] = []
        while found := await usage.proofs.detach_months(2):
            detached += found
        assert f"tool_usage_{before:%Y_%m}" in detached
        assert await owner.fetchval("SELECT count(*) FROM tool_usage") == 1
        rows = await owner.fetchval(
            "SELECT reltuples FROM pg_class WHERE relname = $1", f"tool_usage_{before:%Y_%m}"
        )
        assert rows == 2
        assert (await usage.proofs.verify_account(user_id)).faults == []
        correct = usage.ledger.correct_usage(user_id, 1, ACT, event_id=old.id)
        assert await reason_of(correct) == "USAGE_NOT_FOUND"
        await usage.ledger.correct_usage(user_id, 1, ACT, event_id=recent.id)
        assert (await checked(usage)).faults == []
        assert await usage.metering.make_partitions() == 0
    assert await ledger_faults(owner) == []


async def test_the_window_is_never_detached(usage_database: Database) -> None:
    """Whatever is asked for, months of the last 35 days stay; nobody else may ask."""
    async with usage_database.connection() as conn:
        with pytest.raises(Exception, match="are not detached"):
            await conn.fetchval("SELECT usage_detach_partitions(now() - interval '34 days', 1)")


@pytest.mark.parametrize(
    ("now", "months", "expected"),
    [
        ("2026-03-31T23:00:00+00:00", 2, "2026-01-01"),
        ("2026-01-01T00:30:00+02:00", 2, "2025-10-01"),
        ("2026-01-15T00:00:00+00:00", 13, "2024-12-01"),
    ],
)
def test_months_are_counted_in_utc(now: str, months: int, expected: str) -> None:
    """Whole months before the current one, whatever the zone."""
    assert f"{months_back(datetime.fromisoformat(now), months):%Y-%m-%d}" == expected


def run_verify(url: str, directory: Path, *arguments: str) -> tuple[int, str]:
    ended = finity(directory, "usage", "verify", *arguments, DATABASE_URL=url)
    return ended.returncode, ended.stdout + ended.stderr


async def test_the_command_names_the_first_faults(
    usage: UseCases, owner: Connection, clock: FakeClock, database_url: str, tmp_path: Path
) -> None:
    """0 and a table while all add up, 1 and the account once one does not."""

    async def verify(*arguments: str) -> tuple[int, str]:
        return await asyncio.to_thread(run_verify, database_url, tmp_path, *arguments)

    user_id = await busy_account(usage, owner, clock)
    await make_account(owner, clock)
    code, output = await verify()
    assert (code, "2 accounts, all add up" in output) == (0, True), output
    await usage.proofs.verify_changed(None)
    code, output = await verify()
    assert (code, "0 accounts, all add up" in output) == (0, True), output
    await tamper(owner, "UPDATE credit_grants SET remaining = 1 WHERE source_ref = 'start'")
    for arguments in (["--all"], ["--user", str(user_id)]):
        code, output = await verify(*arguments)
        assert code == 1
        assert f"{user_id}: draws should be" in " ".join(output.split())
    code, output = await verify("--user", str(uuid4()), "--all")
    assert code == 2
