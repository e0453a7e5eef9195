-- Credits are whole numbers. The account row is the only row ever locked; everything else of an
-- account is read and written under that lock.
CREATE TABLE credit_accounts (
    user_id uuid PRIMARY KEY,
    granted bigint NOT NULL DEFAULT 0,
    used bigint NOT NULL DEFAULT 0,
    reserved bigint NOT NULL DEFAULT 0,
    overdraft_limit bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT credit_accounts_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT credit_accounts_parts_are_not_negative
        CHECK (granted >= 0 AND used >= 0 AND reserved >= 0 AND overdraft_limit >= 0),
    -- The guard behind every admission: whatever the code does, nobody spends what is not there.
    CONSTRAINT credit_accounts_not_overdrawn CHECK (granted - used - reserved >= -overdraft_limit),
    CONSTRAINT credit_accounts_granted_max CHECK (granted <= 1000000000000000)
) WITH (fillfactor = 80);

CREATE TABLE credit_grants (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    source text NOT NULL,
    source_ref text NOT NULL,
    amount bigint NOT NULL,
    remaining bigint NOT NULL,
    priority smallint NOT NULL DEFAULT 50,
    category text NOT NULL DEFAULT 'promotional',
    effective_at timestamptz NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL,
    voided_at timestamptz,
    -- When the last credit went. The index below asks for it rather than for remaining, so that
    -- burning a grant bit by bit rewrites no index.
    depleted_at timestamptz,
    CONSTRAINT credit_grants_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT credit_grants_source_key UNIQUE (user_id, source, source_ref),
    CONSTRAINT credit_grants_amount_is_positive CHECK (amount > 0),
    CONSTRAINT credit_grants_remaining_in_range CHECK (remaining BETWEEN 0 AND amount),
    CONSTRAINT credit_grants_depletion_is_whole CHECK ((remaining = 0) = (depleted_at IS NOT NULL)),
    CONSTRAINT credit_grants_priority_in_range CHECK (priority BETWEEN 0 AND 100),
    CONSTRAINT credit_grants_category_is_known CHECK (category IN ('promotional', 'paid')),
    CONSTRAINT credit_grants_expire_after_effect CHECK (expires_at IS NULL OR expires_at > effective_at)
) WITH (fillfactor = 80);

-- The burn order: priority, expiry (none last), promotional before paid, effective, created, id.
CREATE INDEX credit_grants_burn_order_idx ON credit_grants
    (user_id, priority, expires_at NULLS LAST, category DESC, effective_at, created_at, id)
    WHERE depleted_at IS NULL AND voided_at IS NULL;

-- Every change of an account, insert-only. A flush of usage is one entry an account, with the
-- tool_usage rows as its detail.
CREATE TABLE credit_entries (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    kind text NOT NULL,
    amount bigint NOT NULL,
    -- available = granted - used - reserved, after this entry.
    balance_after bigint NOT NULL,
    -- The account's version after this entry: entries of an account in their order.
    version bigint NOT NULL,
    grant_id uuid,
    reservation_id uuid,
    reverses_id uuid,
    created_at timestamptz NOT NULL,
    CONSTRAINT credit_entries_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT credit_entries_grant_id_fkey FOREIGN KEY (grant_id) REFERENCES credit_grants (id),
    CONSTRAINT credit_entries_reverses_id_fkey FOREIGN KEY (reverses_id) REFERENCES credit_entries (id),
    CONSTRAINT credit_entries_version_key UNIQUE (user_id, version),
    CONSTRAINT credit_entries_kind_is_known
        CHECK (kind IN ('grant', 'use', 'reserve', 'release', 'expire', 'void', 'adjust')),
    CONSTRAINT credit_entries_sign_fits_kind CHECK (
        CASE kind
            WHEN 'grant' THEN amount > 0
            WHEN 'release' THEN amount > 0
            WHEN 'adjust' THEN amount <> 0
            ELSE amount < 0
        END
    )
);

-- Balance at a past instant: versions rise with time, so the last entry before it is found by
-- walking credit_entries_version_key backwards; an index on the time would cost every flush.

-- Which grants an entry took its credits from, so that a correction can put them back exactly.
CREATE TABLE credit_draws (
    entry_id uuid NOT NULL,
    grant_id uuid NOT NULL,
    amount bigint NOT NULL,
    PRIMARY KEY (entry_id, grant_id),
    CONSTRAINT credit_draws_entry_id_fkey FOREIGN KEY (entry_id) REFERENCES credit_entries (id),
    CONSTRAINT credit_draws_grant_id_fkey FOREIGN KEY (grant_id) REFERENCES credit_grants (id),
    CONSTRAINT credit_draws_amount_is_positive CHECK (amount > 0)
);

CREATE INDEX credit_draws_grant_id_idx ON credit_draws (grant_id);

-- Credits held for a call that is still running. The id is the caller's and its idempotency key.
CREATE TABLE credit_reservations (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    amount bigint NOT NULL,
    committed bigint,
    state text NOT NULL DEFAULT 'open',
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    resolved_at timestamptz,
    CONSTRAINT credit_reservations_user_id_fkey FOREIGN KEY (user_id) REFERENCES credit_accounts (user_id),
    CONSTRAINT credit_reservations_amount_is_positive CHECK (amount > 0),
    CONSTRAINT credit_reservations_state_is_known CHECK (state IN ('open', 'committed', 'released', 'expired')),
    CONSTRAINT credit_reservations_resolution_is_whole CHECK ((state = 'open') = (resolved_at IS NULL)),
    CONSTRAINT credit_reservations_commit_is_whole CHECK ((state = 'committed') = (committed IS NOT NULL))
);

CREATE INDEX credit_reservations_user_id_idx ON credit_reservations (user_id) WHERE state = 'open';
CREATE INDEX credit_reservations_expires_at_idx ON credit_reservations (expires_at) WHERE state = 'open';

GRANT SELECT, INSERT, UPDATE ON credit_accounts, credit_grants, credit_reservations TO finity_usage;
GRANT SELECT, INSERT ON credit_entries, credit_draws TO finity_usage;
