-- Single-use secrets sent to a person. Each "token" column holds a SHA-256, never the secret.
CREATE TABLE email_verifications (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    token text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    verified_at timestamptz,
    CONSTRAINT email_verifications_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT email_verifications_token_key UNIQUE (token)
);

CREATE INDEX email_verifications_user_id_idx ON email_verifications (user_id);
CREATE INDEX email_verifications_expires_at_idx ON email_verifications (expires_at);

CREATE TABLE reset_requests (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    token text NOT NULL,
    requested_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    CONSTRAINT reset_requests_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT reset_requests_token_key UNIQUE (token)
);

CREATE INDEX reset_requests_user_id_idx ON reset_requests (user_id);
CREATE INDEX reset_requests_expires_at_idx ON reset_requests (expires_at);

-- Plugin and device login (RFC 8628).
CREATE TABLE chrome_auth_links (
    id uuid PRIMARY KEY,
    device_code text NOT NULL,
    user_code text NOT NULL,
    client_name text NOT NULL,
    -- Set by whoever approves.
    user_id uuid,
    interval_seconds int NOT NULL DEFAULT 5,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    approved_at timestamptz,
    claimed_at timestamptz,
    CONSTRAINT chrome_auth_links_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT chrome_auth_links_device_code_key UNIQUE (device_code),
    CONSTRAINT chrome_auth_links_approval_is_whole CHECK ((user_id IS NULL) = (approved_at IS NULL)),
    CONSTRAINT chrome_auth_links_claim_needs_approval CHECK (claimed_at IS NULL OR approved_at IS NOT NULL)
);

CREATE UNIQUE INDEX chrome_auth_links_open_user_code_key ON chrome_auth_links (user_code) WHERE claimed_at IS NULL;
CREATE INDEX chrome_auth_links_user_id_idx ON chrome_auth_links (user_id);
CREATE INDEX chrome_auth_links_expires_at_idx ON chrome_auth_links (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON email_verifications, reset_requests, chrome_auth_links TO finity_auth;
