-- Links and codes that are mailed. "token" is the SHA-256 of a link's secret; a code is derived
-- from the row's id with a key of the room, so nothing of it is stored.
ALTER TABLE email_verifications
    -- 'change' makes the address the account's, 'verify' only confirms the one it has.
    ADD COLUMN purpose text NOT NULL DEFAULT 'verify',
    -- Where the mail went: it proves nothing about an account that has another address by now.
    ADD COLUMN email text NOT NULL DEFAULT '',
    ADD COLUMN superseded_at timestamptz,
    -- The session that asked for a change; it outlives the change.
    ADD COLUMN session_id uuid,
    ADD CONSTRAINT email_verifications_purpose_is_known CHECK (purpose IN ('verify', 'change')),
    ADD CONSTRAINT email_verifications_ends_once CHECK (verified_at IS NULL OR superseded_at IS NULL);

ALTER TABLE reset_requests
    ADD COLUMN purpose text NOT NULL DEFAULT 'reset',
    ADD COLUMN email text NOT NULL DEFAULT '',
    ADD COLUMN superseded_at timestamptz,
    ADD CONSTRAINT reset_requests_purpose_is_known CHECK (purpose = 'reset'),
    ADD CONSTRAINT reset_requests_ends_once CHECK (used_at IS NULL OR superseded_at IS NULL);

CREATE TABLE email_sign_ins (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    token text NOT NULL,
    purpose text NOT NULL DEFAULT 'sign_in',
    email text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    superseded_at timestamptz,
    CONSTRAINT email_sign_ins_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT email_sign_ins_token_key UNIQUE (token),
    CONSTRAINT email_sign_ins_purpose_is_known CHECK (purpose = 'sign_in'),
    CONSTRAINT email_sign_ins_ends_once CHECK (used_at IS NULL OR superseded_at IS NULL)
);

CREATE INDEX email_sign_ins_user_id_idx ON email_sign_ins (user_id);
CREATE INDEX email_sign_ins_expires_at_idx ON email_sign_ins (expires_at);

-- A newer mail supersedes the older one: at most one of a kind is open.
CREATE UNIQUE INDEX email_verifications_one_open ON email_verifications (user_id, purpose)
    WHERE verified_at IS NULL AND superseded_at IS NULL;
CREATE UNIQUE INDEX reset_requests_one_open ON reset_requests (user_id, purpose)
    WHERE used_at IS NULL AND superseded_at IS NULL;
CREATE UNIQUE INDEX email_sign_ins_one_open ON email_sign_ins (user_id, purpose)
    WHERE used_at IS NULL AND superseded_at IS NULL;

-- Who asked for mails, and guessed at the code of the last one. A row stands for an address whether
-- or not somebody has an account with it: asking and guessing cost the same for both.
CREATE TABLE email_requests (
    -- Keyed hash of the address; the table names nobody.
    who text NOT NULL,
    purpose text NOT NULL,
    mails int NOT NULL DEFAULT 1,
    next_at timestamptz NOT NULL,
    -- Codes tried since the last mail.
    tries int NOT NULL DEFAULT 0,
    PRIMARY KEY (who, purpose),
    CONSTRAINT email_requests_purpose_is_known CHECK (purpose IN ('verify', 'change', 'reset', 'sign_in')),
    CONSTRAINT email_requests_tries_are_few CHECK (tries BETWEEN 0 AND 5)
);

-- Clean-up of rows whose pause is long over.
CREATE INDEX email_requests_next_at_idx ON email_requests (next_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON email_sign_ins, email_requests TO finity_auth;
