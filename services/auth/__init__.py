"""
The auth room: accounts, sessions and the keys that sign access tokens.

RPCs: finity.auth.v1.AuthService, MfaService. Tables: users, sessions, signing_keys,
admin_logs, email_verifications, reset_requests, chrome_auth_links, mfa_totp,
mfa_recovery_codes, passkeys, mfa_challenges, auth_outbox, auth_deliveries,
auth_idempotency_keys. Events: user_registered → usage, mail → people.

It never reads another room's tables and never stores a password or token in the clear.
"""
