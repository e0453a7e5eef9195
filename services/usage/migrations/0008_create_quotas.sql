-- Limits: quotas of users and roles, what is used of them, and the monthly allowance of a role.
-- What holds for every account of a role. Whoever locks an account reads it in the same statement,
-- so that a change is in force for whoever comes next, in every process.
CREATE TABLE usage_roles (
    role text PRIMARY KEY,
    -- Credits an account of the role is granted once a month; the services write what their settings say.
    allowance bigint NOT NULL DEFAULT 0,
    -- How many quotas the role has; while it is 0 nobody looks for them.
    quotas int NOT NULL DEFAULT 0,
    CONSTRAINT usage_roles_role_is_known CHECK (role IN ('free', 'pro', 'admin')),
    CONSTRAINT usage_roles_are_not_negative CHECK (allowance >= 0 AND quotas >= 0)
);

INSERT INTO usage_roles (role) VALUES ('free'), ('pro'), ('admin');

ALTER TABLE credit_accounts
    ADD COLUMN role text NOT NULL DEFAULT 'free',
    -- The change of role in auth that was taken over last; older ones change nothing.
    ADD COLUMN role_sequence bigint NOT NULL DEFAULT 0,
    ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC',
    -- How many quotas the user itself has.
    ADD COLUMN quotas int NOT NULL DEFAULT 0,
    -- When the month ends for which an allowance was granted last, and how much of it.
    ADD COLUMN allowance_until timestamptz NOT NULL DEFAULT 'epoch',
    ADD COLUMN allowance_granted bigint NOT NULL DEFAULT 0,
    -- No foreign key: each new account would lock the row of its role.
    ADD CONSTRAINT credit_accounts_role_is_known CHECK (role IN ('free', 'pro', 'admin')),
    ADD CONSTRAINT credit_accounts_limits_are_not_negative CHECK (quotas >= 0 AND allowance_granted >= 0);

-- Whose allowance is to come. An account is in it at another place once a month.
CREATE INDEX credit_accounts_allowance_idx ON credit_accounts (role, allowance_until) WHERE closed_at IS NULL;

CREATE TABLE usage_quotas (
    user_id uuid,
    role text,
    -- '*' for all tools that no more specific quota governs.
    tool_name text NOT NULL,
    time_window text NOT NULL,
    max_calls bigint,
    max_credits bigint,
    updated_at timestamptz NOT NULL,
    CONSTRAINT usage_quotas_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT usage_quotas_role_fkey FOREIGN KEY (role) REFERENCES usage_roles (role),
    CONSTRAINT usage_quotas_scope_is_one CHECK (num_nonnulls(user_id, role) = 1),
    CONSTRAINT usage_quotas_limit_something CHECK (num_nonnulls(max_calls, max_credits) > 0),
    CONSTRAINT usage_quotas_are_not_negative CHECK (max_calls >= 0 AND max_credits >= 0),
    CONSTRAINT usage_quotas_time_window_is_known CHECK (time_window IN ('minute', 'day', 'month'))
);

CREATE UNIQUE INDEX usage_quotas_user_id_key ON usage_quotas (user_id, tool_name, time_window)
    WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX usage_quotas_role_key ON usage_quotas (role, tool_name, time_window)
    WHERE role IS NOT NULL;

-- What is used of quotas. A row holds the newest window alone: it is read and written under the
-- account's lock, and never more rows than quotas.
CREATE TABLE usage_windows (
    user_id uuid NOT NULL,
    tool_name text NOT NULL,
    time_window text NOT NULL,
    -- Its beginning as the calendar has it: 2026-11-25T14:03, 2026-11-25 or 2026-11. It only rises, so
    -- that moving to another time zone begins no window again.
    period text NOT NULL,
    calls bigint NOT NULL,
    credits bigint NOT NULL,
    PRIMARY KEY (user_id, tool_name, time_window),
    CONSTRAINT usage_windows_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT usage_windows_time_window_is_known CHECK (time_window IN ('minute', 'day', 'month')),
    CONSTRAINT usage_windows_are_not_negative CHECK (calls >= 0 AND credits >= 0)
) WITH (fillfactor = 80);

GRANT SELECT, UPDATE ON usage_roles TO finity_usage;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_quotas TO finity_usage;
GRANT SELECT, INSERT, UPDATE ON usage_windows TO finity_usage;
