-- What an account can be beside active, and how a session was opened.
ALTER TABLE users
    ADD COLUMN email_verified_at timestamptz,
    ADD COLUMN mfa_enabled_at timestamptz,
    ADD COLUMN banned_at timestamptz,
    -- NULL with banned_at set is a ban without an end.
    ADD COLUMN banned_until timestamptz,
    ADD COLUMN ban_reason text,
    ADD COLUMN deletion_requested_at timestamptz,
    -- An erased account keeps its row, so that ledgers still point at somebody; nothing in it names a person.
    ADD COLUMN erased_at timestamptz,
    ADD CONSTRAINT users_ban_is_whole CHECK ((banned_at IS NULL) = (ban_reason IS NULL)
        AND (banned_until IS NULL OR banned_until > banned_at)),
    ADD CONSTRAINT users_erased_has_no_way_in CHECK (erased_at IS NULL
        OR (password_hash IS NULL AND oauth_id IS NULL AND deletion_requested_at IS NOT NULL));

CREATE INDEX users_deletion_requested_at_idx ON users (deletion_requested_at)
    WHERE deletion_requested_at IS NOT NULL AND erased_at IS NULL;

ALTER TABLE sessions
    -- Authentication methods (RFC 8176) and how strong they are together.
    ADD COLUMN amr text[] NOT NULL DEFAULT '{pwd}',
    ADD COLUMN acr text NOT NULL DEFAULT 'aal1',
    -- When the user last proved who it is; NULL is created_at.
    ADD COLUMN authenticated_at timestamptz,
    ADD CONSTRAINT sessions_acr_is_known CHECK (acr IN ('aal1', 'aal2')),
    ADD CONSTRAINT sessions_device_length CHECK (char_length(device) <= 100);

-- A user's living sessions: listed, counted, ended together.
CREATE INDEX sessions_living_idx ON sessions (user_id, id) WHERE ended_at IS NULL;
