"""
The usage room: credit accounts, their ledger, and the record of every tool call.

RPCs: finity.usage.v1.UsageService, ReservationService, LedgerService, QuotaService,
ReportService. Tables: credit_accounts, credit_grants, credit_entries,
credit_reservations, credit_lease_holders, tool_usage, usage_rollups, usage_roles,
usage_quotas, usage_windows, usage_thresholds, usage_corrections, usage_verifications,
usage_idempotency_keys, usage_outbox, usage_deliveries.
Sends auth usage_threshold, which mails the user.
Receives from auth: user_registered as OpenAccount, role_changed as SetAccountRole,
user_erased as EraseUser.

It never reads another room's tables and never edits a ledger row.
"""
