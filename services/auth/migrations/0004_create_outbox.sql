-- Effects in other rooms, written in the transaction of what caused them. An event is never changed;
-- its deliveries, one a consumer, carry the state.
CREATE TABLE auth_outbox (
    id uuid PRIMARY KEY,
    topic text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT auth_outbox_topic_is_named CHECK (topic ~ '^[a-z_]+$')
);

CREATE TABLE auth_deliveries (
    event_id uuid NOT NULL,
    consumer text NOT NULL,
    state text NOT NULL DEFAULT 'due',
    attempts int NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    last_error text NOT NULL DEFAULT '',
    PRIMARY KEY (event_id, consumer),
    CONSTRAINT auth_deliveries_event_id_fkey FOREIGN KEY (event_id) REFERENCES auth_outbox (id),
    CONSTRAINT auth_deliveries_state_is_known CHECK (state IN ('due', 'done', 'dead'))
);

-- The relay's claim reads due rows only, however many are done.
CREATE INDEX auth_deliveries_due_idx ON auth_deliveries (next_attempt_at) WHERE state = 'due';

GRANT SELECT, INSERT ON auth_outbox TO finity_auth;
GRANT SELECT, INSERT, UPDATE ON auth_deliveries TO finity_auth;

-- The first answer to each idempotency key, kept 72 hours.
CREATE TABLE auth_idempotency_keys (
    caller text NOT NULL,
    method text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    answer jsonb,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (caller, method, key)
);

CREATE INDEX auth_idempotency_keys_created_at_idx ON auth_idempotency_keys (created_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON auth_idempotency_keys TO finity_auth;
