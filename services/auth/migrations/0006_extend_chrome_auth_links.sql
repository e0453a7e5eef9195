-- Plugin and device login, whole: how it is polled, what was answered, and what the approver proved.
ALTER TABLE chrome_auth_links
    -- IP address the device asked from, empty if unknown: that counts as one address.
    ADD COLUMN address text NOT NULL DEFAULT '',
    ADD COLUMN last_polled_at timestamptz,
    ADD COLUMN denied_at timestamptz,
    -- The approver's session. No foreign key: the row lives ten minutes, and deleting old sessions
    -- need not look here.
    ADD COLUMN session_id uuid,
    -- How and when the approver proved who it is; the device's session has no more than that.
    ADD COLUMN amr text[],
    ADD COLUMN acr text,
    ADD COLUMN authenticated_at timestamptz,
    ADD CONSTRAINT chrome_auth_links_client_name_length CHECK (char_length(client_name) BETWEEN 1 AND 60),
    ADD CONSTRAINT chrome_auth_links_interval_grows CHECK (interval_seconds >= 5),
    ADD CONSTRAINT chrome_auth_links_expire_after_creation CHECK (expires_at > created_at),
    ADD CONSTRAINT chrome_auth_links_one_answer CHECK (approved_at IS NULL OR denied_at IS NULL),
    ADD CONSTRAINT chrome_auth_links_approval_has_proof CHECK (
        num_nulls(approved_at, session_id, amr, acr, authenticated_at) IN (0, 5)),
    ADD CONSTRAINT chrome_auth_links_acr_is_known CHECK (acr IN ('aal1', 'aal2'));

-- How many codes of an address wait.
CREATE INDEX chrome_auth_links_address_idx ON chrome_auth_links (address, expires_at) WHERE claimed_at IS NULL;
