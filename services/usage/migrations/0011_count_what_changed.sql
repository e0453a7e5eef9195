-- A proof counts the calls of those hours whose sums changed since the last one: rows of usage_rollups
-- that a transaction wrote which was not over then. Those of every hour when that was last done a day ago.
ALTER TABLE usage_verifications
    ADD COLUMN seen_xmin xid,
    ADD COLUMN counted_at timestamptz;
