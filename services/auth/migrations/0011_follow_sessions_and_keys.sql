-- What a replayed refresh token looked like. The number that was expected is counter: it stands
-- still once the session is over.
ALTER TABLE sessions
    ADD COLUMN replayed_counter int,
    ADD COLUMN replay_address inet,
    ADD CONSTRAINT sessions_replay_ended_it CHECK (replayed_counter IS NULL
        OR (replayed_counter >= 0 AND end_reason IS NOT DISTINCT FROM 'refresh_token_replayed')),
    ADD CONSTRAINT sessions_replay_address_needs_replay CHECK (replay_address IS NULL
        OR replayed_counter IS NOT NULL);

-- A key is published as soon as it exists and signs from activates_at on, when every cache of the
-- published keys has it; NULL is created_at. Its predecessor's retired_at is the same moment, set
-- when the rotation begins: nothing has to happen then, every replica knows the plan beforehand.
-- signing_keys_one_signs therefore means: one key has no successor.
ALTER TABLE signing_keys
    ADD COLUMN activates_at timestamptz,
    ADD CONSTRAINT signing_keys_retirement_is_whole CHECK ((retired_at IS NULL) = (expires_at IS NULL)
        AND (expires_at IS NULL OR expires_at >= retired_at));
