-- Second factors. users.mfa_enabled_at is set while an account has one that is confirmed.
CREATE TABLE mfa_totp (
    user_id uuid PRIMARY KEY,
    -- Names the factor in lists; the account has one at most.
    id uuid NOT NULL,
    -- AES-256-GCM under a key derived from FINITY_SECRET, bound to the user: nonce, ciphertext, tag.
    sealed_secret bytea NOT NULL,
    created_at timestamptz NOT NULL,
    -- NULL while it waits for the first code.
    confirmed_at timestamptz,
    last_used_at timestamptz,
    -- Number of the last time step whose code was taken: a code works once, and none before it does.
    last_step bigint NOT NULL DEFAULT 0,
    CONSTRAINT mfa_totp_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT mfa_totp_id_key UNIQUE (id),
    CONSTRAINT mfa_totp_last_step_counts CHECK (last_step >= 0)
);

CREATE TABLE mfa_recovery_codes (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    -- HMAC-SHA256 of a code of 80 bits; the code itself is derived from the row's id and rests nowhere.
    digest bytea NOT NULL,
    created_at timestamptz NOT NULL,
    used_at timestamptz,
    CONSTRAINT mfa_recovery_codes_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT mfa_recovery_codes_digest_key UNIQUE (user_id, digest)
);

CREATE TABLE passkeys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    credential_id bytea NOT NULL,
    -- COSE_Key (RFC 9052 section 7).
    public_key bytea NOT NULL,
    -- Signatures the authenticator has counted; stays 0 with those that do not count.
    sign_count bigint NOT NULL,
    name text NOT NULL,
    -- Whether it can be synchronised between devices.
    synced boolean NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz,
    CONSTRAINT passkeys_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    -- A credential proves who one person is.
    CONSTRAINT passkeys_credential_id_key UNIQUE (credential_id),
    CONSTRAINT passkeys_credential_id_length CHECK (octet_length(credential_id) BETWEEN 1 AND 1023),
    CONSTRAINT passkeys_sign_count_counts CHECK (sign_count >= 0),
    CONSTRAINT passkeys_name_length CHECK (char_length(name) BETWEEN 1 AND 100)
);

CREATE INDEX passkeys_user_id_idx ON passkeys (user_id, id);

-- What is asked once: the challenges of passkeys, and sign-ins that wait for their second factor.
CREATE TABLE mfa_challenges (
    id uuid PRIMARY KEY,
    purpose text NOT NULL,
    -- NULL where the answer says who it is.
    user_id uuid,
    tries int NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    CONSTRAINT mfa_challenges_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT mfa_challenges_purpose_is_known CHECK (purpose IN ('sign_in', 'registration', 'assertion')),
    CONSTRAINT mfa_challenges_tries_end CHECK (tries BETWEEN 0 AND 5)
);

CREATE INDEX mfa_challenges_user_id_idx ON mfa_challenges (user_id);
CREATE INDEX mfa_challenges_expires_at_idx ON mfa_challenges (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON mfa_totp, mfa_recovery_codes, passkeys, mfa_challenges TO finity_auth;
