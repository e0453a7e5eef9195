"""
Whether ledgers add up: each check is a statement that finds only what does not.

All of them go on from where an account was last proven, and see one moment if the
transaction does (`one_moment`).
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chassis.columns import column
from chassis.postgres import Connection
from services.usage.domain.metering import NEWEST_EVENT
from services.usage.domain.proofs import WHOLE_EVERY, Check, Fault, Proven
from services.usage.store.metering import LATEST


async def one_moment(conn: Connection) -> None:
    """Makes every statement of a transaction that begins see the same."""
    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


async def page_of_accounts(
    conn: Connection, after: UUID, limit: int, until: datetime
) -> list[tuple[UUID, bool]]:
    """
    Returns accounts in the order of their ids, and whether each is to be looked at.

    It is if it changed since it was seen, or if calls may be of an hour that was not over then
    and is `until` now.
    """
    rows = await conn.fetch(
        "SELECT a.user_id, a.version <> coalesce(v.seen_version, -1) OR v.seen_at < $3"
        "  AND a.updated_at >= date_trunc('hour', v.seen_at, 'UTC') - $4::interval AS changed"
        " FROM (SELECT user_id, version, updated_at FROM credit_accounts WHERE user_id > $1"
        "       ORDER BY user_id LIMIT $2) AS a"
        " LEFT JOIN usage_verifications v ON v.user_id = ANY (ARRAY[a.user_id])"
        " ORDER BY a.user_id",
        after,
        limit,
        until,
        NEWEST_EVENT,
    )
    return [(row["user_id"], row["changed"]) for row in rows]


async def last_proven(conn: Connection, user_ids: Sequence[UUID], now: datetime) -> list[Proven]:
    """Returns where each account was last proven; from the start, if never."""
    rows = await conn.fetch(
        "SELECT u.id, coalesce(v.version, 0), coalesce(v.balance, 0), coalesce(v.granted, 0),"
        " coalesce(v.grant_ids, '{}'), coalesce(v.remaining, '{}'), v.verified_at,"
        # Of a number that is not in the past, as after a restore, nothing follows.
        " CASE WHEN v.counted_at > $2 AND age(v.seen_xmin) >= 0 THEN v.seen_xmin END"
        " FROM unnest($1::uuid[]) AS u (id)"
        " LEFT JOIN usage_verifications v ON v.user_id = ANY (ARRAY[u.id])",
        user_ids,
        now - WHOLE_EVERY,
    )
    return [Proven(*row) for row in rows]


async def find_faults(
    conn: Connection, since: Sequence[Proven], until: datetime = LATEST
) -> list[Fault]:
    """
    Returns everything that does not add up in these accounts; empty for sound ones.

    Calls are counted in the hours before `until`.
    """
    arguments = (
        [proven.user_id for proven in since],
        [proven.version for proven in since],
        [proven.balance for proven in since],
        [proven.granted for proven in since],
        [proven.at for proven in since],
        [grant_id for proven in since for grant_id in proven.grant_ids],
        [left for proven in since for left in proven.remaining],
        column(proven.xmin for proven in since),
        until,
    )
    found: list[Fault] = []
    for statement in (_ENTRIES, _GRANTS, _DRAWS, _USAGE, _HOLDS):
        rows = await conn.fetch(_SINCE + statement, *arguments)
        found += [Fault(row[0], Check(row[1]), int(row[2]), int(row[3])) for row in rows]
    return found


async def write_proven(
    conn: Connection, user_ids: Sequence[UUID], counted: Sequence[UUID], now: datetime
) -> None:
    """Remembers accounts that add up as they are; of the `counted` ones all calls were counted."""
    await conn.execute(_WRITE_PROVEN, user_ids, now, counted)


async def write_faults(conn: Connection, faults: Sequence[Fault], now: datetime) -> None:
    """Remembers what is wrong; the next proof starts again from the last good one."""
    await conn.execute(
        "INSERT INTO usage_verifications AS v (user_id, seen_version, seen_at, faults)"
        " SELECT f.user_id, a.version, $3, array_agg(f.name ORDER BY f.name)"
        " FROM unnest($1::uuid[], $2::text[]) AS f (user_id, name)"
        " JOIN credit_accounts a ON a.user_id = ANY (ARRAY[f.user_id])"
        " GROUP BY f.user_id, a.version"
        " ON CONFLICT (user_id) DO UPDATE SET seen_version = excluded.seen_version,"
        # The next one counts everything: a part of it might not see what is wrong.
        " seen_at = excluded.seen_at, faults = excluded.faults, counted_at = NULL",
        [fault.user_id for fault in faults],
        [fault.check for fault in faults],
        now,
    )


async def count_unsound(conn: Connection) -> int:
    """Returns how many accounts did not add up when they were last looked at."""
    return int(await conn.fetchval("SELECT count(*) FROM usage_verifications WHERE faults <> '{}'"))


async def is_alone(conn: Connection) -> bool:
    """Tells whether nobody else proves ledgers, and keeps others from it until COMMIT."""
    return bool(
        await conn.fetchval("SELECT pg_try_advisory_xact_lock(hashtext('usage_verifications'))")
    )


# Every statement starts so: where each account was proven, and what its grants had left then.
_SINCE = """
WITH since AS (
    SELECT user_id, version, balance, granted, at, xmin, $9::timestamptz AS until FROM unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $8::text::xid[]
    ) AS s (user_id, version, balance, granted, at, xmin)
), known AS (
    SELECT * FROM unnest($6::uuid[], $7::bigint[]) AS k (grant_id, remaining)
)
"""

_ENTRIES = """
, chain AS (
    SELECT e.user_id, e.version, e.kind, e.amount,
        e.version = lag(e.version, 1, s.version) OVER walk + 1
            AND e.balance_after = lag(e.balance_after, 1, s.balance) OVER walk + e.amount AS whole
    FROM since s CROSS JOIN LATERAL (
        SELECT user_id, version, kind, amount, balance_after FROM credit_entries
        WHERE user_id = s.user_id AND version > s.version ORDER BY version
    ) AS e
    WINDOW walk AS (PARTITION BY e.user_id ORDER BY e.version)
), sums AS (
    SELECT user_id, count(*) FILTER (WHERE NOT whole) AS broken, max(version) AS last,
        sum(amount) AS total,
        sum(amount) FILTER (WHERE kind IN ('grant', 'expire', 'void', 'adjust')) AS granted
    FROM chain GROUP BY user_id
)
SELECT a.user_id, f.name, f.expected, f.found
FROM since s
JOIN credit_accounts a ON a.user_id = ANY (ARRAY[s.user_id])
LEFT JOIN sums c ON c.user_id = s.user_id
CROSS JOIN LATERAL (VALUES
    ('chain', 0, coalesce(c.broken, 0)),
    ('version', coalesce(c.last, s.version), a.version),
    ('balance', s.balance + coalesce(c.total, 0), a.granted - a.used - a.reserved),
    ('granted', s.granted + coalesce(c.granted, 0), a.granted)
) AS f (name, expected, found)
WHERE f.expected <> f.found
"""

_GRANTS = """
SELECT a.user_id, 'grants', a.granted - a.used - a.reserved + a.debt, coalesce(g.remaining, 0)
FROM since s
JOIN credit_accounts a ON a.user_id = ANY (ARRAY[s.user_id])
LEFT JOIN LATERAL (
    SELECT sum(g.remaining) AS remaining FROM credit_grants g
    WHERE g.user_id = a.user_id AND g.activated_at IS NOT NULL
) AS g ON true
WHERE a.granted - a.used - a.reserved + a.debt <> coalesce(g.remaining, 0)
"""

# A grant that is not known from the last proof and has not begun since had nothing left then.
_DRAWS = """
, entries AS (
    SELECT e.user_id, e.kind, e.grant_id, e.grant_ids, e.drawn
    FROM since s
    JOIN credit_entries e ON e.user_id = ANY (ARRAY[s.user_id]) AND e.version > s.version
), begun AS (
    SELECT DISTINCT grant_id FROM entries
    WHERE kind IN ('grant', 'reverse') AND grant_id IS NOT NULL
), drawn AS (
    SELECT e.user_id, d.grant_id, sum(d.amount) AS amount
    FROM entries e, unnest(e.grant_ids, e.drawn) AS d (grant_id, amount)
    GROUP BY e.user_id, d.grant_id
), grants AS (
    SELECT g.user_id, g.id, g.remaining,
        coalesce(k.remaining, CASE WHEN b.grant_id IS NULL THEN 0 ELSE g.amount END) AS had
    FROM since s
    CROSS JOIN LATERAL (
        SELECT user_id, id, remaining, amount FROM credit_grants
        WHERE user_id = s.user_id AND activated_at IS NOT NULL ORDER BY source
    ) AS g
    LEFT JOIN known k ON k.grant_id = g.id
    LEFT JOIN begun b ON b.grant_id = g.id
)
SELECT g.user_id, 'draws', g.had - coalesce(d.amount, 0), g.remaining
FROM grants g LEFT JOIN drawn d ON d.user_id = g.user_id AND d.grant_id = g.id
WHERE g.remaining <> g.had - coalesce(d.amount, 0)
UNION ALL
SELECT d.user_id, 'draws', 0, d.amount
FROM drawn d
WHERE d.amount <> 0
    AND NOT EXISTS (SELECT FROM grants g WHERE g.user_id = d.user_id AND g.id = d.grant_id)
"""

# Calls come up to 35 days late: older hours do not change any more, but for corrections. Numbers of
# transactions are compared by their age, which is right across half of all there are.
_USAGE = """
, kept AS (
    SELECT s.user_id, s.at, s.xmin, s.until, greatest(
        usage_kept_from(), date_trunc('hour', s.at - interval '36 days', 'UTC')
    ) AS first
    FROM since s
), counted AS (
    SELECT k.user_id, k.until, CASE WHEN k.xmin IS NULL THEN k.first ELSE (
        SELECT min(r.hour) FROM usage_rollups r
        WHERE r.user_id = k.user_id AND r.hour >= k.first
            AND (r.hour >= date_trunc('hour', k.at, 'UTC') OR age(r.xmin) <= age(k.xmin))
    ) END AS start
    FROM kept k
)
SELECT a.user_id, f.name, f.expected, f.found
FROM counted k
JOIN credit_accounts a ON a.user_id = ANY (ARRAY[k.user_id])
CROSS JOIN LATERAL (
    SELECT coalesce(sum(r.credits), 0) AS every,
        coalesce(sum(r.credits) FILTER (WHERE r.counted), 0) AS credits,
        coalesce(sum(r.calls) FILTER (WHERE r.counted), 0) AS calls
    FROM (
        SELECT credits, calls, hour >= k.start AND hour < k.until AS counted
        FROM usage_rollups WHERE user_id = k.user_id
    ) AS r
) AS r
CROSS JOIN LATERAL (
    SELECT coalesce(sum(u.credits_used), 0) AS credits, count(*) AS calls
    FROM tool_usage u
    WHERE u.user_id = k.user_id AND u."timestamp" >= k.start AND u."timestamp" < k.until
) AS u
CROSS JOIN LATERAL (
    SELECT coalesce(sum(c.credits), 0) AS credits
    FROM usage_corrections c
    WHERE c.user_id = k.user_id AND c.hour >= k.start AND c.hour < k.until
) AS c
CROSS JOIN LATERAL (VALUES
    ('used', r.every, a.used),
    ('usage', r.credits, u.credits - c.credits),
    ('calls', r.calls, u.calls)
) AS f (name, expected, found)
WHERE f.expected <> f.found
"""

_HOLDS = """
SELECT a.user_id, 'holds', coalesce(h.amount, 0), a.reserved
FROM since s
JOIN credit_accounts a ON a.user_id = ANY (ARRAY[s.user_id])
LEFT JOIN LATERAL (
    SELECT sum(h.amount) AS amount FROM credit_reservations h
    WHERE h.user_id = a.user_id AND h.state = 'open'
) AS h ON true
WHERE a.reserved <> coalesce(h.amount, 0)
"""

_WRITE_PROVEN = """
INSERT INTO usage_verifications AS v (
    user_id, version, balance, granted, grant_ids, remaining, verified_at, seen_version, seen_at,
    seen_xmin, counted_at
)
SELECT a.user_id, a.version, a.granted - a.used - a.reserved, a.granted, g.ids, g.remaining,
    $2::timestamptz, a.version, $2, pg_snapshot_xmin(pg_current_snapshot())::xid,
    CASE WHEN a.user_id = ANY ($3::uuid[]) THEN $2 END
FROM credit_accounts a
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(g.id ORDER BY g.id), '{}') AS ids,
        coalesce(array_agg(g.remaining ORDER BY g.id), '{}') AS remaining
    FROM (
        SELECT id, remaining FROM credit_grants
        WHERE user_id = a.user_id AND depleted_at IS NULL AND voided_at IS NULL ORDER BY priority
    ) AS g
) AS g
WHERE a.user_id = ANY($1::uuid[])
ON CONFLICT (user_id) DO UPDATE SET
    version = excluded.version, balance = excluded.balance, granted = excluded.granted,
    grant_ids = excluded.grant_ids, remaining = excluded.remaining,
    verified_at = excluded.verified_at, seen_version = excluded.seen_version,
    seen_at = excluded.seen_at, seen_xmin = excluded.seen_xmin,
    counted_at = coalesce(excluded.counted_at, v.counted_at), faults = '{}'
"""
