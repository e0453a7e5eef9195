-- What a reservation must remember to be resolved once and to answer the same call alike.
ALTER TABLE credit_reservations
    -- The tool the credits are held for; NULL for a lease, whose calls name theirs.
    ADD COLUMN tool_name text,
    -- As it was asked for; expires_at moves when the hold is extended.
    ADD COLUMN first_expires_at timestamptz NOT NULL,
    -- Which grants it holds credits of, as in credit_entries: chosen when it is made, so that a
    -- grant that expires meanwhile still pays.
    ADD COLUMN grant_ids uuid[] NOT NULL,
    ADD COLUMN drawn bigint[] NOT NULL,
    -- The tool that was charged, if it is another one.
    ADD COLUMN committed_tool text,
    -- What was left to spend when it was made and when it was resolved.
    ADD COLUMN available bigint NOT NULL,
    ADD COLUMN resolved_available bigint,
    -- A lease is a reservation with a holder; of one holder's leases that with the highest fence counts.
    ADD COLUMN holder text,
    ADD COLUMN fence bigint,
    ADD CONSTRAINT credit_reservations_draws_are_pairs CHECK (cardinality(grant_ids) = cardinality(drawn)),
    ADD CONSTRAINT credit_reservations_commit_is_not_negative CHECK (committed >= 0),
    ADD CONSTRAINT credit_reservations_is_for_a_tool_or_a_holder CHECK ((tool_name IS NULL) = (holder IS NOT NULL)),
    ADD CONSTRAINT credit_reservations_lease_is_whole CHECK ((holder IS NULL) = (fence IS NULL));

-- Due holds are found by their account: one index instead of two, for each hold enters and leaves it.
DROP INDEX credit_reservations_user_id_idx;
DROP INDEX credit_reservations_expires_at_idx;
CREATE INDEX credit_reservations_open_idx ON credit_reservations (user_id, expires_at) WHERE state = 'open';

-- The last lease of each holder, read and written under the account's lock.
CREATE TABLE credit_lease_holders (
    user_id uuid NOT NULL,
    holder text NOT NULL,
    fence bigint NOT NULL,
    lease_id uuid NOT NULL,
    PRIMARY KEY (user_id, holder),
    CONSTRAINT credit_lease_holders_user_id_fkey FOREIGN KEY (user_id) REFERENCES credit_accounts (user_id),
    CONSTRAINT credit_lease_holders_lease_id_fkey FOREIGN KEY (lease_id) REFERENCES credit_reservations (id),
    CONSTRAINT credit_lease_holders_fence_is_positive CHECK (fence > 0)
) WITH (fillfactor = 80);

GRANT SELECT, INSERT, UPDATE ON credit_lease_holders TO finity_usage;
