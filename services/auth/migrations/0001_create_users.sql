-- Accounts. The columns the product's document names keep their names; the rest is beside them.
CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL,
    -- PHC string (argon2id); NULL for an account that signs in elsewhere only.
    password_hash text,
    role text NOT NULL DEFAULT 'free',
    created_at timestamptz NOT NULL,
    last_login timestamptz,
    oauth_provider text,
    oauth_id text,
    -- Grows when older access tokens must end; the "ver" claim of a token is compared with it.
    token_version bigint NOT NULL DEFAULT 1,
    tokens_revoked_at timestamptz,
    CONSTRAINT users_email_key UNIQUE (email),
    CONSTRAINT users_email_is_normalised CHECK (email = lower(email) AND email !~ '\s'),
    CONSTRAINT users_email_length CHECK (char_length(email) BETWEEN 3 AND 254),
    CONSTRAINT users_role_is_known CHECK (role IN ('free', 'pro', 'admin')),
    CONSTRAINT users_oauth_is_whole CHECK ((oauth_provider IS NULL) = (oauth_id IS NULL))
);

CREATE UNIQUE INDEX users_oauth_key ON users (oauth_provider, oauth_id) WHERE oauth_id IS NOT NULL;
-- ListUsers by role, and the lock on every administrator when one is to lose the role.
CREATE INDEX users_role_id_idx ON users (role, id);
CREATE INDEX users_tokens_revoked_at_idx ON users (tokens_revoked_at) WHERE tokens_revoked_at IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON users TO finity_auth;
-- Foreign keys of the other rooms; their owners may point at a user, not read one.
GRANT REFERENCES (id) ON users TO finity_usage_owner;

-- What administrators did, written in the action's own transaction. Insert-only.
CREATE TABLE admin_logs (
    id uuid PRIMARY KEY,
    actor text NOT NULL,
    action text NOT NULL,
    -- No foreign key: the log outlives the account.
    target_user_id uuid,
    details jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    CONSTRAINT admin_logs_action_is_named CHECK (action ~ '^[a-z_]{1,50}$')
);

CREATE INDEX admin_logs_target_idx ON admin_logs (target_user_id, id);

GRANT SELECT, INSERT ON admin_logs TO finity_auth;
