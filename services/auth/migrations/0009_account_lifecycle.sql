-- The end of an account, and of the mails about it.
ALTER TABLE users
    -- Written when the deletion is asked for: the day its owner was told holds, whatever the grace is later.
    ADD COLUMN erasure_due_at timestamptz,
    ADD CONSTRAINT users_deletion_is_whole CHECK ((deletion_requested_at IS NULL) = (erasure_due_at IS NULL));

-- The sweeper's claim reads what is due only, however many are erased.
CREATE INDEX users_erasure_due_at_idx ON users (erasure_due_at)
    WHERE erasure_due_at IS NOT NULL AND erased_at IS NULL;

-- Mails name their addressees, and the outbox is insert-only: what serves may neither change an event
-- nor delete one. Mails leave it by the two functions below and in no other way.
CREATE INDEX auth_outbox_mail_created_at_idx ON auth_outbox (created_at) WHERE topic = 'mail';
CREATE INDEX auth_outbox_mail_to_idx ON auth_outbox ((payload ->> 'to')) WHERE topic = 'mail';

-- Deletes mails written before an instant that nobody will send any more, at most so many; returns how many.
CREATE FUNCTION auth_forget_old_mail(written_before timestamptz, most int) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
AS $$
    WITH old AS (
        SELECT o.id FROM auth_outbox o
        WHERE o.topic = 'mail' AND o.created_at < written_before AND NOT EXISTS (
            SELECT FROM auth_deliveries d WHERE d.event_id = o.id AND d.state = 'due')
        ORDER BY o.created_at LIMIT most FOR UPDATE SKIP LOCKED
    ), unsent AS (
        DELETE FROM auth_deliveries WHERE event_id IN (SELECT id FROM old)
    ), gone AS (
        DELETE FROM auth_outbox WHERE id IN (SELECT id FROM old) RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- Deletes every mail to an address, sent or not; returns how many.
CREATE FUNCTION auth_forget_mail_to(address text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
AS $$
    WITH theirs AS (
        SELECT id FROM auth_outbox WHERE topic = 'mail' AND payload ->> 'to' = address FOR UPDATE
    ), unsent AS (
        DELETE FROM auth_deliveries WHERE event_id IN (SELECT id FROM theirs)
    ), gone AS (
        DELETE FROM auth_outbox WHERE id IN (SELECT id FROM theirs) RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- They run as the owner: nothing of the caller's may stand in for the tables they name.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION auth_forget_old_mail SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION auth_forget_mail_to SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION auth_forget_old_mail, auth_forget_mail_to FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth_forget_old_mail, auth_forget_mail_to TO finity_auth;
