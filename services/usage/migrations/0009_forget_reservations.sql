-- Reservations are kept while somebody may ask for them again, not for ever.

-- Those that were given back; the others are found by their key.
CREATE INDEX credit_reservations_given_back_idx ON credit_reservations (id) WHERE state IN ('released', 'expired');
-- Whoever deletes a reservation asks whether it is the last lease of a holder.
CREATE INDEX credit_lease_holders_lease_id_idx ON credit_lease_holders (lease_id);

-- Deletes up to `most` reservations of either kind that were resolved before an instant: those that
-- were given back, and those that were used, whose ids are less than one of each kind. The last lease
-- of a holder stays: fences rise for ever. The service may delete no other way.
CREATE FUNCTION usage_forget_reservations(given_back_before uuid, used_before uuid, resolved_before timestamptz, most int)
    RETURNS int
    LANGUAGE sql SECURITY DEFINER
AS $$
    WITH given_back AS (
        SELECT r.id FROM credit_reservations r
        WHERE r.state IN ('released', 'expired') AND r.id < given_back_before AND r.resolved_at < resolved_before
            AND NOT EXISTS (SELECT FROM credit_lease_holders l WHERE l.lease_id = r.id)
        ORDER BY r.id LIMIT most FOR UPDATE SKIP LOCKED
    ), used AS (
        SELECT r.id FROM credit_reservations r
        WHERE r.state = 'committed' AND r.id < used_before AND r.resolved_at < resolved_before
            AND NOT EXISTS (SELECT FROM credit_lease_holders l WHERE l.lease_id = r.id)
        ORDER BY r.id LIMIT most FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM credit_reservations
        WHERE id = ANY (ARRAY(SELECT id FROM given_back UNION ALL SELECT id FROM used))
        RETURNING 1
    )
    SELECT count(*)::int FROM gone
$$;

-- It runs as the owner: nothing of the caller's may stand in for the tables it names.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION usage_forget_reservations SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION usage_forget_reservations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_forget_reservations TO finity_usage;
