-- Which share of a month's credits a user was told of: once a month and share, whoever flushes.
CREATE TABLE usage_thresholds (
    user_id uuid NOT NULL,
    -- The first day of the calendar month, UTC.
    month date NOT NULL,
    percent smallint NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, month, percent),
    CONSTRAINT usage_thresholds_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT usage_thresholds_month_is_its_first_day CHECK (extract(day FROM month) = 1),
    CONSTRAINT usage_thresholds_percent_in_range CHECK (percent BETWEEN 1 AND 100)
);

GRANT SELECT, INSERT ON usage_thresholds TO finity_usage;

-- Effects in other rooms, written in the transaction of what caused them. An event is never changed;
-- its deliveries, one a consumer, carry the state.
CREATE TABLE usage_outbox (
    id uuid PRIMARY KEY,
    topic text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT usage_outbox_topic_is_named CHECK (topic ~ '^[a-z_]+$')
);

CREATE TABLE usage_deliveries (
    event_id uuid NOT NULL,
    consumer text NOT NULL,
    state text NOT NULL DEFAULT 'due',
    attempts int NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    last_error text NOT NULL DEFAULT '',
    PRIMARY KEY (event_id, consumer),
    CONSTRAINT usage_deliveries_event_id_fkey FOREIGN KEY (event_id) REFERENCES usage_outbox (id),
    CONSTRAINT usage_deliveries_state_is_known CHECK (state IN ('due', 'done', 'dead'))
);

-- The relay's claim reads due rows only, however many are done.
CREATE INDEX usage_deliveries_due_idx ON usage_deliveries (next_attempt_at) WHERE state = 'due';

GRANT SELECT, INSERT ON usage_outbox TO finity_usage;
GRANT SELECT, INSERT, UPDATE ON usage_deliveries TO finity_usage;
