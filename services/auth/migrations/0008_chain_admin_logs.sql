-- Who acts as whom. At most 15 minutes: no refresh prolongs a session past its expires_at.
ALTER TABLE sessions
    ADD COLUMN impersonated_by uuid,
    ADD CONSTRAINT sessions_impersonated_by_fkey FOREIGN KEY (impersonated_by) REFERENCES users (id) ON DELETE CASCADE,
    ADD CONSTRAINT sessions_nobody_impersonates_itself CHECK (impersonated_by <> user_id),
    ADD CONSTRAINT sessions_impersonation_is_short CHECK (impersonated_by IS NULL
        OR expires_at <= created_at + interval '15 minutes');

-- Ends with its impersonator.
CREATE INDEX sessions_impersonated_by_idx ON sessions (impersonated_by) WHERE impersonated_by IS NOT NULL;

-- SearchUsers: the start of an address whatever the database's collation; everybody, newest first;
-- the few who are banned.
CREATE INDEX users_email_prefix_idx ON users (email text_pattern_ops);
CREATE INDEX users_created_at_idx ON users (created_at, id);
CREATE INDEX users_banned_at_idx ON users (banned_at) WHERE banned_at IS NOT NULL;

-- The admin log becomes a chain: each entry has a place without a gap and a SHA-256 over itself and
-- the hash of the entry before, so that nobody changes, removes or slips in one unseen.
ALTER TABLE admin_logs
    ADD COLUMN seq bigint,
    ADD COLUMN prev_hash bytea,
    ADD COLUMN hash bytea,
    -- One shape to hash. Text to text also keeps the log readable for whoever only has psql.
    ADD CONSTRAINT admin_logs_details_are_texts CHECK (jsonb_typeof(details) = 'object'
        AND NOT jsonb_path_exists(details, 'strict $.* ? (@.type() != "string")'));

-- The last place and hash. Whoever adds an entry holds this row until its commit.
CREATE TABLE admin_log_head (
    single boolean PRIMARY KEY DEFAULT true,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT admin_log_head_is_one CHECK (single),
    CONSTRAINT admin_log_head_hash_is_sha256 CHECK (octet_length(hash) = 32)
);

INSERT INTO admin_log_head (seq, hash) VALUES (0, decode(repeat('00', 32), 'hex'));

-- The role that serves reads it; only the trigger below writes, as the owner.
GRANT SELECT ON admin_log_head TO finity_auth;

CREATE FUNCTION admin_log_text(value text) RETURNS bytea
    LANGUAGE sql STABLE STRICT
    RETURN int4send(octet_length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8');

-- What is hashed, byte by byte, is written in services/auth/domain/admin_logs.py, which computes it
-- a second time for `finity audit verify`.
CREATE FUNCTION admin_log_hash(entry admin_logs) RETURNS bytea
    LANGUAGE sql STABLE
    RETURN sha256(
        convert_to('finity.admin_log.v1', 'UTF8')
        || int8send((entry).seq)
        || (entry).prev_hash
        || uuid_send((entry).id)
        || admin_log_text((entry).actor)
        || admin_log_text((entry).action)
        || CASE WHEN (entry).target_user_id IS NULL THEN '\x00'::bytea
                ELSE '\x01'::bytea || uuid_send((entry).target_user_id) END
        || int8send((extract(epoch FROM (entry).created_at) * 1000000)::bigint)
        || (SELECT int4send(count(*)::int)
                   || coalesce(string_agg(admin_log_text(key) || admin_log_text(value), ''::bytea
                                          ORDER BY key COLLATE "C"), ''::bytea)
              FROM jsonb_each_text((entry).details))
    );

-- In a trigger, so that no writer can leave it out or choose its own place and hash.
CREATE FUNCTION admin_logs_chain() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
AS $$
BEGIN
    -- Writers queue here: the next one reads what this one committed.
    SELECT h.seq + 1, h.hash INTO STRICT NEW.seq, NEW.prev_hash FROM admin_log_head h FOR UPDATE;
    NEW.hash := admin_log_hash(NEW);
    UPDATE admin_log_head SET seq = NEW.seq, hash = NEW.hash;
    RETURN NEW;
END $$;

CREATE FUNCTION admin_logs_refuse() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the admin log is only added to', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

-- Names are looked up in our own schema alone, whoever calls.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION admin_logs_chain SET search_path = %I, pg_temp', current_schema());
END $$;

REVOKE EXECUTE ON FUNCTION admin_logs_chain, admin_logs_refuse FROM PUBLIC;

-- What was logged before gets its place in the order of its time.
DO $$
DECLARE
    entry admin_logs;
    last_seq bigint := 0;
    last_hash bytea := decode(repeat('00', 32), 'hex');
BEGIN
    FOR entry IN
        SELECT id, actor, action, target_user_id, details, created_at, seq, prev_hash, hash
          FROM admin_logs ORDER BY created_at, id
    LOOP
        entry.seq := last_seq + 1;
        entry.prev_hash := last_hash;
        entry.hash := admin_log_hash(entry);
        UPDATE admin_logs SET seq = entry.seq, prev_hash = entry.prev_hash, hash = entry.hash
         WHERE id = entry.id;
        last_seq := entry.seq;
        last_hash := entry.hash;
    END LOOP;
    UPDATE admin_log_head SET seq = last_seq, hash = last_hash;
END $$;

ALTER TABLE admin_logs
    ALTER COLUMN seq SET NOT NULL,
    ALTER COLUMN prev_hash SET NOT NULL,
    ALTER COLUMN hash SET NOT NULL,
    ADD CONSTRAINT admin_logs_seq_key UNIQUE (seq),
    ADD CONSTRAINT admin_logs_seq_counts CHECK (seq > 0),
    ADD CONSTRAINT admin_logs_hashes_are_sha256 CHECK (octet_length(prev_hash) = 32 AND octet_length(hash) = 32);

CREATE TRIGGER admin_logs_chain BEFORE INSERT ON admin_logs
    FOR EACH ROW EXECUTE FUNCTION admin_logs_chain();
-- The owner too: whoever would change the log must first, visibly, drop a trigger.
CREATE TRIGGER admin_logs_are_only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON admin_logs
    FOR EACH STATEMENT EXECUTE FUNCTION admin_logs_refuse();
CREATE TRIGGER admin_log_head_stays BEFORE DELETE OR TRUNCATE ON admin_log_head
    FOR EACH STATEMENT EXECUTE FUNCTION admin_logs_refuse();

-- ListAdminLogs reads by place.
DROP INDEX admin_logs_target_idx;
CREATE INDEX admin_logs_target_seq_idx ON admin_logs (target_user_id, seq);
CREATE INDEX admin_logs_actor_seq_idx ON admin_logs (actor, seq);
CREATE INDEX admin_logs_action_seq_idx ON admin_logs (action, seq);
CREATE INDEX admin_logs_created_at_idx ON admin_logs (created_at);
