-- Each entry is held by the one before it, when it is written; the first one of an account by the
-- account. Before, only the last entry of what a statement wrote was compared, and each had a foreign
-- key to users, whose check cost a metered call more than any other part of its flush; see
-- docs/decisions/0031. An account is never deleted, nor is its user.
ALTER TABLE credit_entries DROP CONSTRAINT credit_entries_user_id_fkey;

CREATE FUNCTION credit_entries_follow() RETURNS trigger
    LANGUAGE plpgsql
AS $$
DECLARE
    wrong uuid;
BEGIN
    SELECT e.user_id INTO wrong
    FROM added e
    LEFT JOIN LATERAL (
        SELECT balance_after FROM credit_entries
        WHERE user_id = ANY (ARRAY[e.user_id]) AND version = e.version - 1
    ) b ON true
    WHERE e.balance_after - e.amount <> coalesce(b.balance_after, 0)
        OR b.balance_after IS NULL AND (
            e.version <> 1
            OR NOT EXISTS (SELECT FROM credit_accounts WHERE user_id = ANY (ARRAY[e.user_id]))
        )
    LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'the entries of % would not follow each other', wrong
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_entries_follow', TABLE = 'credit_entries';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER credit_entries_follow AFTER INSERT ON credit_entries
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION credit_entries_follow();

-- The guard behind every balance, less what the one above does.
CREATE OR REPLACE FUNCTION credit_accounts_balance() RETURNS trigger
    LANGUAGE plpgsql
AS $$
DECLARE
    wrong uuid;
BEGIN
    SELECT a.user_id INTO wrong
    FROM changed a
    LEFT JOIN LATERAL (
        SELECT balance_after FROM credit_entries
        WHERE user_id = ANY (ARRAY[a.user_id]) AND version = a.version
    ) e ON true
    WHERE a.granted - a.used - a.reserved <> coalesce(e.balance_after, 0)
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
    EXECUTE format('ALTER FUNCTION credit_entries_follow SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION credit_accounts_balance SET search_path = %I, pg_temp', current_schema());
END $$;
