-- What still named somebody after the erasure, and what was kept for ever for nothing.

-- A mail about an account may have gone to an address that the account has no more, or never got.
CREATE INDEX auth_outbox_mail_about_idx ON auth_outbox ((payload ->> 'about')) WHERE topic = 'mail';
-- Answers that are a user, with the address.
CREATE INDEX auth_idempotency_keys_user_idx ON auth_idempotency_keys ((answer ->> 'id'))
    WHERE answer ->> 'id' IS NOT NULL;

-- Until now these rows named the user by id. Forgetting a pause of an hour does no harm.
DELETE FROM email_requests WHERE purpose = 'change';

-- Deletes every mail about a user, sent or not, wherever it went; returns how many.
CREATE FUNCTION auth_forget_mail_about(who text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
AS $$
    WITH theirs AS (
        SELECT id FROM auth_outbox WHERE topic = 'mail' AND payload ->> 'about' = who FOR UPDATE
    ), unsent AS (
        DELETE FROM auth_deliveries WHERE event_id IN (SELECT id FROM theirs)
    ), gone AS (
        DELETE FROM auth_outbox WHERE id IN (SELECT id FROM theirs) RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- Other events have done their work once every consumer has them. A dead delivery keeps its event,
-- however old it is: somebody is to try it again.
CREATE INDEX auth_outbox_event_created_at_idx ON auth_outbox (created_at) WHERE topic <> 'mail';

-- Deletes events other than mails that were written before an instant and that every consumer has,
-- at most so many; returns how many.
CREATE FUNCTION auth_forget_old_events(written_before timestamptz, most int) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
AS $$
    WITH old AS (
        SELECT o.id FROM auth_outbox o
        WHERE o.topic <> 'mail' AND o.created_at < written_before AND NOT EXISTS (
            SELECT FROM auth_deliveries d WHERE d.event_id = o.id AND d.state <> 'done')
        ORDER BY o.created_at LIMIT most FOR UPDATE SKIP LOCKED
    ), delivered AS (
        DELETE FROM auth_deliveries WHERE event_id IN (SELECT id FROM old)
    ), gone AS (
        DELETE FROM auth_outbox WHERE id IN (SELECT id FROM old) RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- They run as the owner: nothing of the caller's may stand in for the tables they name.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION auth_forget_mail_about SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION auth_forget_old_events SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION auth_forget_mail_about, auth_forget_old_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth_forget_mail_about, auth_forget_old_events TO finity_auth;

-- Signing keys that verify nothing any more go too, and authenticator apps that nobody confirmed.
CREATE INDEX signing_keys_expires_at_idx ON signing_keys (expires_at);
CREATE INDEX mfa_totp_unconfirmed_idx ON mfa_totp (created_at) WHERE confirmed_at IS NULL;
GRANT DELETE ON signing_keys TO finity_auth;

-- Whoever has an IPv6 address has 2^64 of them: logins that wait are counted by what one customer of a
-- network has. The address stays what a person is shown.
ALTER TABLE chrome_auth_links ADD COLUMN network text NOT NULL DEFAULT '';
CREATE INDEX chrome_auth_links_network_idx ON chrome_auth_links (network, expires_at) WHERE claimed_at IS NULL;
