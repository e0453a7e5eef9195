"""
The auth room: accounts, sessions and the keys that sign access tokens.

RPCs: finity.auth.v1.AuthService, AccountLifecycleService, AdminService, DeviceService,
EmailService, MfaService, OAuthService, PasswordService, SessionService, TokenService.
Tables: users, sessions, signing_keys, admin_logs, admin_log_head, email_verifications,
reset_requests, email_sign_ins, email_requests, chrome_auth_links, oauth_identities,
oauth_flows, mfa_totp, mfa_recovery_codes, passkeys, mfa_challenges, auth_outbox,
auth_deliveries, auth_idempotency_keys. Events: user_registered {user_id,
invite_token?} → usage; role_changed {user_id, role, sequence} → usage; user_erased {user_id}
→ usage; mail → the SMTP server.

It never reads another room's tables and never stores a password or token in the clear.
"""
