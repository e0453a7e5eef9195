-- One way to write an account for everything that changes it; see docs/decisions/0018.
-- Draws rest in their entry: a table of their own, its two indexes and two foreign keys cost
-- every flush as much as the calls it records. A negative draw gives back.
ALTER TABLE credit_entries
    ADD COLUMN grant_ids uuid[] NOT NULL DEFAULT '{}',
    ADD COLUMN drawn bigint[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT credit_entries_draws_are_pairs CHECK (cardinality(grant_ids) = cardinality(drawn)),
    DROP CONSTRAINT credit_entries_kind_is_known,
    DROP CONSTRAINT credit_entries_sign_fits_kind,
    ADD CONSTRAINT credit_entries_kind_is_known CHECK (
        kind IN ('grant', 'use', 'reserve', 'commit', 'release', 'expire', 'void', 'adjust', 'reverse')
    ),
    ADD CONSTRAINT credit_entries_sign_fits_kind CHECK (
        CASE kind
            WHEN 'grant' THEN amount > 0
            WHEN 'release' THEN amount > 0
            WHEN 'reverse' THEN amount > 0
            WHEN 'adjust' THEN amount <> 0
            -- What a reservation spent less than it held comes back, what it spent more goes.
            WHEN 'commit' THEN true
            ELSE amount < 0
        END
    );

UPDATE credit_entries e SET grant_ids = d.grants, drawn = d.amounts
FROM (
    SELECT entry_id, array_agg(grant_id ORDER BY grant_id) AS grants, array_agg(amount ORDER BY grant_id) AS amounts
    FROM credit_draws GROUP BY entry_id
) d
WHERE d.entry_id = e.id;

-- Closing an account voided its grants without a draw.
UPDATE credit_entries e SET grant_ids = v.grants, drawn = v.amounts
FROM (
    SELECT user_id, array_agg(id ORDER BY id) AS grants, array_agg(remaining ORDER BY id) AS amounts
    FROM credit_grants WHERE voided_at IS NOT NULL AND remaining > 0 GROUP BY user_id
) v
WHERE v.user_id = e.user_id AND e.kind = 'void';

UPDATE credit_grants SET remaining = 0, depleted_at = voided_at WHERE voided_at IS NOT NULL AND remaining > 0;

DROP TABLE credit_draws;

-- A grant counts from when it is effective; until then it is nothing but a promise.
ALTER TABLE credit_grants
    ADD COLUMN activated_at timestamptz,
    ADD CONSTRAINT credit_grants_are_drawn_when_active CHECK (activated_at IS NOT NULL OR remaining IN (0, amount)),
    ADD CONSTRAINT credit_grants_voided_is_empty CHECK (voided_at IS NULL OR remaining = 0);

UPDATE credit_grants SET activated_at = created_at;

ALTER TABLE credit_accounts
    -- What was spent on overdraft; the next grant pays it first.
    ADD COLUMN debt bigint NOT NULL DEFAULT 0,
    -- No later than when a grant of the account begins or expires, or a hold is over.
    ADD COLUMN due_at timestamptz,
    ADD CONSTRAINT credit_accounts_debt_is_not_negative CHECK (debt >= 0);

CREATE INDEX credit_accounts_due_at_idx ON credit_accounts (due_at) WHERE due_at IS NOT NULL;

-- The guard behind every balance: an account is what its last entry says, that entry follows from
-- the one before it, and what is left in its grants is what it can spend. Once a statement, for a
-- flush changes hundreds of accounts; whoever changes one writes its grants first.
CREATE FUNCTION credit_accounts_balance() RETURNS trigger
    LANGUAGE plpgsql
AS $$
DECLARE
    wrong uuid;
BEGIN
    SELECT a.user_id INTO wrong
    FROM changed a
    LEFT JOIN credit_entries e ON e.user_id = a.user_id AND e.version = a.version
    LEFT JOIN credit_entries b ON b.user_id = a.user_id AND b.version = a.version - 1
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

CREATE TRIGGER credit_accounts_balance AFTER UPDATE ON credit_accounts
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION credit_accounts_balance();
