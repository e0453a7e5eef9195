-- Who a user is at identity providers. users.oauth_provider and oauth_id name the first of them, as
-- the product's document has it; all of them, that one too, are here, and sign-ins read only here.
CREATE TABLE oauth_identities (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    provider text NOT NULL,
    -- The provider's own id of the person ("sub"): addresses change hands, it does not.
    subject text NOT NULL,
    -- As the provider gave it when it was linked; shown to the user and used for nothing else.
    email text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    CONSTRAINT oauth_identities_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT oauth_identities_subject_key UNIQUE (provider, subject),
    CONSTRAINT oauth_identities_subject_length CHECK (char_length(subject) BETWEEN 1 AND 255)
);

CREATE INDEX oauth_identities_user_id_idx ON oauth_identities (user_id, id);

GRANT SELECT, INSERT, UPDATE, DELETE ON oauth_identities TO finity_auth;

-- Accounts that came with an identity keep it. A user has one at most here, so its id serves for the row.
INSERT INTO oauth_identities (id, user_id, provider, subject, created_at, last_used_at)
SELECT id, id, oauth_provider, oauth_id, created_at, coalesce(last_login, created_at)
FROM users WHERE oauth_id IS NOT NULL;

-- Sign-ins under way at a provider. Digests only: state, nonce and code verifier are derived from the
-- secret that the client keeps and a key of the room's, and rest nowhere.
CREATE TABLE oauth_flows (
    id uuid PRIMARY KEY,
    provider text NOT NULL,
    purpose text NOT NULL,
    -- Who links; NULL for a sign-in.
    user_id uuid,
    -- SHA-256 of the client's secret, and of the state that must come back with it.
    flow text NOT NULL,
    state text NOT NULL,
    redirect_uri text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    claimed_at timestamptz,
    CONSTRAINT oauth_flows_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT oauth_flows_flow_key UNIQUE (flow),
    CONSTRAINT oauth_flows_purpose_is_known CHECK (purpose IN ('sign_in', 'link')),
    CONSTRAINT oauth_flows_links_have_a_user CHECK ((purpose = 'link') = (user_id IS NOT NULL)),
    CONSTRAINT oauth_flows_expire_after_creation CHECK (expires_at > created_at)
);

CREATE INDEX oauth_flows_user_id_idx ON oauth_flows (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX oauth_flows_expires_at_idx ON oauth_flows (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON oauth_flows TO finity_auth;
