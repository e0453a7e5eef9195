-- A proof counts the calls of those hours whose sums changed since the last one: rows of usage_rollups
-- that a transaction wrote which was not over then. Once a day, and where nothing is known, of all that
-- are kept.
ALTER TABLE usage_verifications
    ADD COLUMN seen_xmin xid,
    ADD COLUMN counted_at timestamptz;
