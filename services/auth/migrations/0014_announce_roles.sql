-- usage keeps the role of each account from now on: those who have one already are told to it as a
-- change would be. Whatever changes later has a higher token_version and is newer there.
WITH event AS (
    INSERT INTO auth_outbox (id, topic, payload, created_at)
    SELECT gen_random_uuid(), 'role_changed',
        jsonb_build_object('user_id', id, 'role', role, 'sequence', token_version::text), now()
    FROM users WHERE role <> 'free'
    RETURNING id
)
INSERT INTO auth_deliveries (event_id, consumer, next_attempt_at)
SELECT id, 'usage', now() FROM event;
