-- The same guard as before. Planned while there are no entries, as by the first sweep of an empty house,
-- and kept to until the next ANALYZE, it read every entry for each account that a flush changed: with
-- ten thousand of them that was nine tenths of a call. Written like the room's own statements (see
-- services/usage/store/__init__.py) it has no choice but to look for the user.
CREATE OR REPLACE FUNCTION credit_accounts_balance() RETURNS trigger
    LANGUAGE plpgsql
AS $$
DECLARE
    wrong uuid;
BEGIN
    SELECT a.user_id INTO wrong
    FROM changed a
    LEFT JOIN LATERAL (
        SELECT balance_after, amount FROM credit_entries
        WHERE user_id = ANY (ARRAY[a.user_id]) AND version = a.version
    ) e ON true
    LEFT JOIN LATERAL (
        SELECT balance_after FROM credit_entries
        WHERE user_id = ANY (ARRAY[a.user_id]) AND version = a.version - 1
    ) b ON true
    WHERE a.granted - a.used - a.reserved <> coalesce(e.balance_after, 0)
        OR coalesce(e.balance_after - e.amount, 0) <> coalesce(b.balance_after, 0)
        OR a.granted - a.used - a.reserved + a.debt <> (
            SELECT coalesce(sum(g.remaining), 0) FROM credit_grants g
            WHERE g.user_id = a.user_id AND g.depleted_at IS NULL AND g.voided_at IS NULL
                AND g.activated_at IS NOT NULL
        )
    LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'the account of % would not balance', wrong
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_accounts_balance', TABLE = 'credit_accounts';
    END IF;
    RETURN NULL;
END $$;

DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION credit_accounts_balance SET search_path = %I, pg_temp', current_schema());
END $$;
