-- The account of an erased user: its ledger stays and balances, nothing is granted or spent any more.
ALTER TABLE credit_accounts
    ADD COLUMN closed_at timestamptz,
    -- The guard behind every admission: whatever the code does, a closed account has nothing to spend.
    ADD CONSTRAINT credit_accounts_closed_is_empty
        CHECK (closed_at IS NULL OR granted - used - reserved <= 0);
