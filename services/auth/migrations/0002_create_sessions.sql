-- One row a session, however often it is refreshed. No token is stored: access_token is the id
-- ("jti") of the one issued with the current counter, refresh_token the SHA-256 of the current one.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    access_token text NOT NULL,
    refresh_token text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- Number of the refresh token now current; a token carries the number it was issued with.
    counter int NOT NULL DEFAULT 0,
    refreshed_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    device text NOT NULL DEFAULT '',
    address inet,
    ended_at timestamptz,
    end_reason text,
    ended_by text,
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT sessions_refresh_token_key UNIQUE (refresh_token),
    CONSTRAINT sessions_counter_counts CHECK (counter >= 0),
    CONSTRAINT sessions_end_is_whole CHECK ((ended_at IS NULL) = (end_reason IS NULL)),
    CONSTRAINT sessions_expire_after_creation CHECK (expires_at > created_at)
);

CREATE INDEX sessions_user_id_idx ON sessions (user_id, id);
-- Revocations: what ended within the last access token lifetime.
CREATE INDEX sessions_ended_at_idx ON sessions (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON sessions TO finity_auth;

-- Keys that sign access tokens. The private half is sealed with a key derived from FINITY_SECRET.
CREATE TABLE signing_keys (
    kid text PRIMARY KEY,
    public_key bytea NOT NULL,
    sealed_private_key bytea NOT NULL,
    created_at timestamptz NOT NULL,
    -- From then on it only verifies; after expires_at it is not published any more.
    retired_at timestamptz,
    expires_at timestamptz,
    CONSTRAINT signing_keys_public_key_is_ed25519 CHECK (octet_length(public_key) = 32)
);

-- Several replicas may start on an empty database: one of them makes the key.
CREATE UNIQUE INDEX signing_keys_one_signs ON signing_keys ((true)) WHERE retired_at IS NULL;

GRANT SELECT, INSERT, UPDATE ON signing_keys TO finity_auth;
