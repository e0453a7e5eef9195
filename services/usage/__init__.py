"""
The usage room: credit accounts, their ledger, and the record of every tool call.

RPCs: finity.usage.v1.UsageService, QuotaService. Tables: credit_accounts, credit_grants,
credit_entries, credit_reservations, tool_usage, usage_rollups, usage_roles,
usage_quotas, usage_windows.
Receives from auth: user_registered as OpenAccount, role_changed as SetAccountRole,
user_erased as EraseUser.

It never reads another room's tables and never edits a ledger row.
"""
