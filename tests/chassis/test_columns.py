"""chassis.columns: whole columns as PostgreSQL reads them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis.columns import arrays, column, columns, microseconds, texts
from chassis.postgres import Connection, Database

PAST = st.datetimes(datetime(2000, 1, 1), datetime(2105, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


async def read(conn: Connection, kind: str, value: str) -> list[object]:
    return list(await conn.fetchval(f"SELECT $1::text::{kind}[]", value))


async def test_ids_numbers_and_instants_come_back(usage_database: Database) -> None:
    """Each kind is read back as it was, NULL and the empty column too, in any time zone."""
    at = datetime.now(UTC)
    columns: list[tuple[str, list[object]]] = [
        ("uuid", [uuid4(), None, UUID(int=0)]),
        ("bigint", [0, -1, 2**63 - 1, None, -(2**63)]),
        ("timestamptz", [at, None, datetime(9999, 12, 31, tzinfo=UTC)]),
        ("uuid", []),
        ("bigint", [None]),
    ]
    async with usage_database.transaction() as conn:
        await conn.execute("SET LOCAL TimeZone = 'Asia/Kathmandu'")
        for kind, values in columns:
            assert await read(conn, kind, column(values)) == values


@given(
    values=st.lists(
        st.none()
        | st.sampled_from(["", "NULL", "None", 'a"b', "a\\b", "{,}", " a ", "a\nb\tc", "ä€𝄞"])
        # PostgreSQL has no character 0, and UTF-8 no halves of a pair.
        | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_texts_come_back_whatever_is_in_them(
    usage_database: Database, values: list[str | None]
) -> None:
    """Quotes, backslashes, braces and the word NULL are characters as any other."""
    async with usage_database.connection() as conn:
        assert await read(conn, "text", texts(values)) == values


async def test_arrays_and_booleans_come_back(usage_database: Database) -> None:
    """Arrays in a column have any length, also none."""
    some = uuid4()
    async with usage_database.connection() as conn:
        assert await read(conn, "boolean", column([True, None, False])) == [True, None, False]
        assert await read(conn, "text", arrays([[], [1, -2], [some]])) == [
            "{}",
            "{1,-2}",
            f"{{{some}}}",
        ]
        assert await conn.fetchval("SELECT '{1,-2}'::text::bigint[]") == [1, -2]


def test_there_is_a_column_for_each_attribute() -> None:
    """In the order of the names; an instant that is missing is NULL."""
    rows = [timedelta(days=1), timedelta(seconds=2)]
    assert columns(rows, "seconds", "days") == ["{0,2}", "{1,0}"]
    assert microseconds([None, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)]) == "{NULL,1000000}"


@given(times=st.lists(PAST, min_size=1, max_size=50))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_instants_are_exact_to_the_microsecond(
    usage_database: Database, times: list[datetime]
) -> None:
    """What to_timestamp makes of a column of microseconds is the instant that went in."""
    edges = [time.replace(microsecond=999_999) for time in times]
    wanted = [*times, *edges, *(time + timedelta(microseconds=1) for time in edges)]
    async with usage_database.connection() as conn:
        rows = await conn.fetch(
            "SELECT to_timestamp(t / 1e6::float8) AS at FROM unnest($1::text::bigint[]) AS c (t)",
            microseconds(wanted),
        )
    assert [row["at"] for row in rows] == wanted
