-- Reservations are kept while somebody may ask for them again, not for ever.

-- Of an order that no other index has, so that it is chosen whatever the table held when it was
-- analysed; those that were used are found by their key.
CREATE INDEX credit_reservations_given_back_idx ON credit_reservations (created_at)
    WHERE state IN ('released', 'expired');

-- Fences rise for ever, their leases are forgotten like all others.
ALTER TABLE credit_lease_holders DROP CONSTRAINT credit_lease_holders_lease_id_fkey;

-- Deletes up to `most` reservations of either kind: those that were made and given back before two
-- instants, and those whose calls are no longer in tool_usage, for until then a call may be
-- corrected, and only its reservation knows what it was paid from.
CREATE FUNCTION usage_forget_reservations(made_before timestamptz, resolved_before timestamptz, most int) RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER
    -- A batch stops at `most`: to read and sort all that will go first would take as long each time.
    SET enable_seqscan = off
    SET enable_bitmapscan = off
    SET enable_sort = off
AS $$
DECLARE
    kept_from timestamptz := usage_kept_from();
    deleted int;
BEGIN
    -- An id comes within 35 days of its time, and no more than 5 minutes before it.
    IF made_before > now() - interval '36 days' OR resolved_before > now() - interval '71 hours' THEN
        RAISE EXCEPTION 'reservations that may be asked for again are not forgotten';
    END IF;
    WITH given_back AS (
        SELECT id FROM credit_reservations
        WHERE state IN ('released', 'expired') AND created_at < made_before AND resolved_at < resolved_before
        ORDER BY created_at LIMIT most FOR UPDATE SKIP LOCKED
    ), used AS (
        SELECT id FROM credit_reservations
        WHERE state = 'committed' AND id < usage_id_floor(kept_from)
            -- A lease's calls have times of their own, up to 5 minutes after it was settled.
            AND resolved_at < kept_from - interval '5 minutes' AND resolved_at < resolved_before
        ORDER BY id LIMIT most FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM credit_reservations
        WHERE id = ANY (ARRAY(SELECT id FROM given_back UNION ALL SELECT id FROM used))
        RETURNING 1
    )
    SELECT count(*) INTO deleted FROM gone;
    RETURN deleted;
END $$;

-- It runs as the owner: nothing of the caller's may stand in for the tables it names.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION usage_forget_reservations SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION usage_forget_reservations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_forget_reservations TO finity_usage;
