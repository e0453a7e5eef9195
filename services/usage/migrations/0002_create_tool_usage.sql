-- Every metered tool call. The id is the caller's UUIDv7 and carries the event's time, so the
-- primary key both deduplicates over the whole window and finds the partition.
CREATE TABLE tool_usage (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    tool_name text NOT NULL,
    credits_used bigint NOT NULL,
    "timestamp" timestamptz NOT NULL,
    -- The ledger entry that paid for it; NULL when it cost nothing. No foreign key: both rows are
    -- written by one statement, and the check would cost as much as the row.
    entry_id uuid,
    PRIMARY KEY (id),
    CONSTRAINT tool_usage_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT tool_usage_credits_used_is_not_negative CHECK (credits_used >= 0)
) PARTITION BY RANGE (id);

CREATE INDEX tool_usage_user_id_timestamp_idx ON tool_usage (user_id, "timestamp", id);

-- Insert-only: a correction is an entry, never an edit.
GRANT SELECT, INSERT ON tool_usage TO finity_usage;

-- Returns the least id of an instant: its milliseconds in 48 bits, then zeros (RFC 9562 section 5.7).
CREATE FUNCTION usage_id_floor(instant timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT
    RETURN rpad(lpad(to_hex((extract(epoch FROM instant) * 1000)::bigint), 12, '0'), 32, '0')::uuid;

-- Makes the month partitions that cover the given instants and returns how many were new. The
-- service calls it ahead of time; it may not create tables itself.
CREATE FUNCTION usage_make_partitions(first_instant timestamptz, last_instant timestamptz) RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    SET timezone = 'UTC'
    -- A new partition locks the whole table: better try again later than stop all metering.
    SET lock_timeout = '200ms'
AS $$
DECLARE
    month timestamptz := date_trunc('month', first_instant);
    name text;
    made int := 0;
BEGIN
    IF first_instant < now() - interval '1 year' OR last_instant > now() + interval '1 year' THEN
        RAISE EXCEPTION 'partitions are made within a year of today';
    END IF;
    -- Several replicas look ahead at the same time.
    PERFORM pg_advisory_xact_lock(hashtext('usage_make_partitions'));
    WHILE month <= last_instant LOOP
        name := 'tool_usage_' || to_char(month, 'YYYY_MM');
        IF to_regclass(name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF tool_usage FOR VALUES FROM (%L) TO (%L)',
                name, usage_id_floor(month), usage_id_floor(month + interval '1 month')
            );
            made := made + 1;
        END IF;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END $$;

-- It runs as the owner: nothing of the caller's may stand in for the tables it names.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION usage_make_partitions SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION usage_make_partitions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_make_partitions TO finity_usage;

-- The window of accepted events and some months ahead; the service goes on from there.
SELECT usage_make_partitions(now() - interval '2 months', now() + interval '3 months');

-- Sums by hour of event time, written with the rows they sum.
CREATE TABLE usage_rollups (
    user_id uuid NOT NULL,
    tool_name text NOT NULL,
    hour timestamptz NOT NULL,
    calls bigint NOT NULL,
    credits bigint NOT NULL,
    PRIMARY KEY (user_id, hour, tool_name),
    CONSTRAINT usage_rollups_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
) WITH (fillfactor = 80);

GRANT SELECT, INSERT, UPDATE ON usage_rollups TO finity_usage;
