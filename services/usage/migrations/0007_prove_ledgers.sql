-- Who made an entry, where it was no tool call and no clock, and why.
ALTER TABLE credit_entries
    ADD COLUMN actor text,
    ADD COLUMN note text,
    DROP CONSTRAINT credit_entries_kind_is_known,
    DROP CONSTRAINT credit_entries_sign_fits_kind,
    ADD CONSTRAINT credit_entries_kind_is_known CHECK (
        kind IN ('grant', 'use', 'reserve', 'commit', 'release', 'expire', 'void', 'adjust', 'reverse', 'limit')
    ),
    ADD CONSTRAINT credit_entries_sign_fits_kind CHECK (
        CASE kind
            WHEN 'grant' THEN amount > 0
            WHEN 'release' THEN amount > 0
            WHEN 'reverse' THEN amount > 0
            WHEN 'adjust' THEN amount <> 0
            WHEN 'limit' THEN amount = 0
            WHEN 'commit' THEN true
            ELSE amount < 0
        END
    );

-- A grant may be given long before its entry is written, and voided before there is any.
ALTER TABLE credit_grants
    ADD COLUMN granted_by text,
    ADD COLUMN voided_by text,
    ADD COLUMN void_note text;

-- An adjustment may take more than was ever granted, down to the overdraft limit.
ALTER TABLE credit_accounts
    DROP CONSTRAINT credit_accounts_parts_are_not_negative,
    ADD CONSTRAINT credit_accounts_parts_are_not_negative
        CHECK (used >= 0 AND reserved >= 0 AND overdraft_limit >= 0);

-- What was given back of a tool call, insert-only: tool_usage keeps what the call cost, and used and
-- the hourly sums are that less its corrections. The first column finds what an entry gave back so
-- far; where in its draws the next correction goes on follows from the sum.
CREATE TABLE usage_corrections (
    entry_id uuid NOT NULL,
    event_id uuid NOT NULL,
    reversal_id uuid NOT NULL,
    user_id uuid NOT NULL,
    tool_name text NOT NULL,
    -- The hour of the call, as in usage_rollups.
    hour timestamptz NOT NULL,
    credits bigint NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (entry_id, event_id, reversal_id),
    CONSTRAINT usage_corrections_entry_id_fkey FOREIGN KEY (entry_id) REFERENCES credit_entries (id),
    CONSTRAINT usage_corrections_reversal_id_fkey FOREIGN KEY (reversal_id) REFERENCES credit_entries (id),
    CONSTRAINT usage_corrections_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT usage_corrections_credits_are_positive CHECK (credits > 0)
);

CREATE INDEX usage_corrections_user_id_hour_idx ON usage_corrections (user_id, hour);

GRANT SELECT, INSERT ON usage_corrections TO finity_usage;

CREATE TABLE usage_idempotency_keys (
    caller text NOT NULL,
    method text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    answer jsonb,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (caller, method, key)
);

CREATE INDEX usage_idempotency_keys_created_at_idx ON usage_idempotency_keys (created_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON usage_idempotency_keys TO finity_usage;

-- How far each ledger was proven: the account as it was then, from which the next proof goes on. An
-- account that does not add up keeps where it last did, and what is wrong.
CREATE TABLE usage_verifications (
    user_id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,
    balance bigint NOT NULL DEFAULT 0,
    granted bigint NOT NULL DEFAULT 0,
    -- What the grants had left that had something left.
    grant_ids uuid[] NOT NULL DEFAULT '{}',
    remaining bigint[] NOT NULL DEFAULT '{}',
    verified_at timestamptz,
    -- The version that was looked at last, and the checks that failed there.
    seen_version bigint NOT NULL,
    seen_at timestamptz NOT NULL,
    faults text[] NOT NULL DEFAULT '{}',
    CONSTRAINT usage_verifications_user_id_fkey FOREIGN KEY (user_id) REFERENCES credit_accounts (user_id),
    CONSTRAINT usage_verifications_grants_are_pairs CHECK (cardinality(grant_ids) = cardinality(remaining))
);

CREATE INDEX usage_verifications_faults_idx ON usage_verifications (user_id) WHERE faults <> '{}';

GRANT SELECT, INSERT, UPDATE ON usage_verifications TO finity_usage;

-- Returns from when on tool calls are in tool_usage: the first of the oldest month that is attached.
CREATE FUNCTION usage_kept_from() RETURNS timestamptz
    LANGUAGE sql STABLE
    SET timezone = 'UTC'
AS $$
    SELECT min(to_timestamp(substring(c.relname FROM 'tool_usage_(\d{4}_\d\d)$'), 'YYYY_MM'))
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'tool_usage'::regclass
$$;

-- Takes months that end at or before an instant out of tool_usage, the oldest first and at most so
-- many, and returns their names. The tables stay, for whoever archives them; the hourly sums stay too.
CREATE FUNCTION usage_detach_partitions(before timestamptz, most int) RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET timezone = 'UTC'
    -- A partition that goes locks the whole table: better try again later than stop all metering.
    SET lock_timeout = '200ms'
AS $$
DECLARE
    name text;
    names text[] := '{}';
BEGIN
    -- Events of the last 35 days may still come, and duplicates of them must be known.
    IF before > now() - interval '35 days' THEN
        RAISE EXCEPTION 'months of the last 35 days are not detached';
    END IF;
    -- Those who make partitions, or detach in another replica, wait here and not on the tables.
    PERFORM pg_advisory_xact_lock(hashtext('usage_make_partitions'));
    FOR name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'tool_usage'::regclass
            AND to_timestamp(substring(c.relname FROM 'tool_usage_(\d{4}_\d\d)$'), 'YYYY_MM')
                + interval '1 month' <= before
        ORDER BY c.relname LIMIT most
    LOOP
        EXECUTE format('ALTER TABLE tool_usage DETACH PARTITION %I', name);
        names := names || name;
    END LOOP;
    RETURN names;
END $$;

-- It runs as the owner: nothing of the caller's may stand in for the tables it names.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION usage_detach_partitions SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION usage_kept_from SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION usage_detach_partitions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_detach_partitions TO finity_usage;
