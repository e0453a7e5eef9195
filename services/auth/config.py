"""What the auth room is told by its environment; read only by __main__."""

import json
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from chassis.limits import Limit
from chassis.settings import ROOM_PORTS, ServiceSettings
from services.auth.domain import one_time
from services.auth.domain.devices import DevicePolicy
from services.auth.domain.oauth import Protocol, Provider, is_loopback, is_secure
from services.auth.domain.passkeys import LOCAL, RelyingParty
from services.auth.domain.sessions import SessionPolicy
from services.auth.mailer import Mailer, SmtpServer
from services.auth.passwords import Passwords
from services.auth.service.room import Guesses

GOOGLE = "https://accounts.google.com"
GITHUB = "https://github.com"
GITHUB_API = "https://api.github.com"
OIDC_SCOPES = ("openid", "email", "profile")
GITHUB_SCOPES = ("read:user", "user:email")


class OAuthProvider(BaseModel, extra="forbid"):
    """One identity provider: a preset, or the issuer of any OpenID Connect provider."""

    preset: Literal["google", "github"] | None = None
    issuer: str = ""
    """As the provider's discovery document spells it."""
    client_id: str = Field(min_length=1)
    client_secret: SecretStr = SecretStr("")
    """Empty for a public client."""
    scopes: tuple[str, ...] = ()
    """Empty takes the protocol's: who somebody is, and the e-mail address."""
    redirect_uri: tuple[str, ...] = Field(min_length=1)
    """Where browsers may come back to: one address or a list."""
    base_url: str = GITHUB
    """GitHub only: its pages, "https://HOST" for an Enterprise Server."""
    api_url: str = GITHUB_API
    """GitHub only: its API, "https://HOST/api/v3" for an Enterprise Server."""

    @field_validator("redirect_uri", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.preset is None) == (self.issuer == ""):
            raise ValueError("needs either a preset (google, github) or an issuer")
        if self.preset != "github" and {"base_url", "api_url"} & self.model_fields_set:
            raise ValueError("base_url and api_url are GitHub's")
        if self.scopes and self.preset != "github" and "openid" not in self.scopes:
            raise ValueError('scopes must hold "openid"')
        # A redirect to this machine is how programs on it sign in (RFC 8252 section 7.3).
        if not all(is_secure(uri, loopback=True) for uri in self.redirect_uri):
            raise ValueError("redirect_uri must be https, or http on a loopback address")
        if not all(is_secure(url, loopback=True) for url in self.addresses()):
            raise ValueError("addresses must be https; in development also http on loopback")
        return self

    def addresses(self) -> list[str]:
        """Returns the addresses the service itself calls first."""
        return [self.base_url, self.api_url] if self.preset == "github" else [self._issuer()]

    def _issuer(self) -> str:
        return GOOGLE if self.preset == "google" else self.issuer

    def provider(self, name: str) -> Provider:
        """Returns the provider as the domain has it."""
        github = self.preset == "github"
        base_url = self.base_url.rstrip("/")
        return Provider(
            name=name,
            protocol=Protocol.GITHUB if github else Protocol.OIDC,
            issuer=f"{base_url}/login/oauth" if github else self._issuer(),
            client_id=self.client_id,
            client_secret=self.client_secret.get_secret_value(),
            scopes=self.scopes or (GITHUB_SCOPES if github else OIDC_SCOPES),
            redirect_uris=self.redirect_uri,
            base_url=base_url if github else "",
            api_url=self.api_url.rstrip("/") if github else "",
        )


ProviderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class Settings(ServiceSettings):
    """Each field is a variable with the prefix FINITY_, but for the two ports named below."""

    port: int = Field(ROOM_PORTS["auth"], ge=0, le=65535, validation_alias="FINITY_AUTH_PORT")
    metrics_port: int = Field(0, ge=0, le=65535, validation_alias="FINITY_AUTH_METRICS_PORT")
    usage_address: str = f"127.0.0.1:{ROOM_PORTS['usage']}"
    """host:port of the usage service, which opens an account for each new user."""

    issuer: str = "https://finity.ai"
    """The "iss" claim of access tokens."""
    access_token_seconds: int = Field(900, ge=10, le=3600)
    session_idle_days: int = Field(30, ge=1, le=365)
    """A session not refreshed for so long is over."""
    session_days: int = Field(90, ge=1, le=730)
    """A session is over after so long, however often it was refreshed."""
    refresh_grace_seconds: int = Field(10, ge=0, le=60)
    """After a refresh, how long the two tokens before the current one still get it."""
    refresh_reuse_seconds: int = Field(60, ge=0, le=86400)
    """How long the token just before the current one still gets it; 0 is strict."""

    signing_key_delay_seconds: int = Field(600, ge=0, le=86400)
    """How long a new signing key is published before it signs; caches of the keys keep them 600."""

    argon2_memory_kib: int = Field(7168, ge=8)
    argon2_time_cost: int = Field(5, ge=1)
    argon2_processes: int = Field(0, ge=0, le=256)
    """Processes that hash passwords; 0 is one a core."""
    argon2_queue: int = Field(256, ge=1)
    """Passwords that may wait to be hashed; more are refused with HASHING_BUSY."""

    guesses_per_pair: int = Field(5, ge=1)
    """Wrong passwords an hour for one account from one address; each further one costs a wait."""
    guesses_per_account: int = Field(20, ge=1)
    """The same for one account, from wherever."""
    guesses_per_address: int = Field(50, ge=1)
    """The same from one address, for whatever account; bounds public calls too, see count_call."""
    registrations_per_address: int = Field(100, ge=1)
    """Registrations an hour from one address; each further one costs a wait."""

    device_codes_per_address: int = Field(20, ge=1)
    """Logins of devices at one address, or one IPv6 /64, that may wait at once."""

    def device_policy(self) -> DevicePolicy:
        """Returns where devices send their users, and how many may wait."""
        page = f"{self.public_url.rstrip('/')}/device"
        return DevicePolicy(page, self.device_codes_per_address)

    oauth_providers: Annotated[dict[ProviderName, OAuthProvider], NoDecode] = Field({})
    """JSON: name → identity provider. A name is stored with each identity: it keeps its issuer."""

    @field_validator("oauth_providers", mode="before")
    @classmethod
    def _parse_providers(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError as error:
            raise ValueError('must be JSON such as {"google": {"preset": "google", …}}') from error

    @model_validator(mode="after")
    def _refuse_plain_providers(self) -> Self:
        for name, provider in self.oauth_providers.items():
            if self.env == "production" and any(map(is_loopback, provider.addresses())):
                raise ValueError(f"FINITY_OAUTH_PROVIDERS: {name} is on this machine")
        return self

    def providers(self) -> list[Provider]:
        """Returns the identity providers as the domain has them."""
        return [provider.provider(name) for name, provider in self.oauth_providers.items()]

    deletion_grace_days: int = Field(14, ge=0, le=365)
    """How long the owner of an account that is to be deleted may change its mind."""

    def deletion_grace(self) -> timedelta:
        """Returns the time between asking for a deletion and the erasure."""
        return timedelta(days=self.deletion_grace_days)

    public_url: str = Field("http://localhost:3000", pattern=r"^https?://[^\s?#]+$")
    """Where people reach the product: links in mails start with it."""
    smtp_host: str = "localhost"
    """The mail server that takes what the suite sends."""
    smtp_port: int = Field(1025, ge=1, le=65535)
    smtp_username: str = ""
    """Empty: no authentication."""
    smtp_password: SecretStr = SecretStr("")
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    """STARTTLS must then succeed; "tls" speaks it from the first byte (RFC 8314)."""
    mail_from: str = Field(
        "Finity <no-reply@finity.localhost>", pattern=r"^[^\r\n]*[^\s@]@[^\s@]+$"
    )
    """The From header and, by its address, the envelope's sender."""

    @model_validator(mode="after")
    def _refuse_what_anybody_could_read(self) -> Self:
        if self.env != "production":
            return self
        if not self.public_url.startswith("https://"):
            raise ValueError("FINITY_PUBLIC_URL must start with https:// in production")
        if self.smtp_username and self.smtp_security == "none":
            raise ValueError("FINITY_SMTP_SECURITY must be starttls or tls to send a password")
        return self

    def mailer(self) -> Mailer:
        """Returns what sends the mails of the outbox."""
        server = SmtpServer(
            host=self.smtp_host,
            port=self.smtp_port,
            username=self.smtp_username,
            password=self.smtp_password.get_secret_value(),
            security=self.smtp_security,
        )
        # Nobody has said where the product's pages are: at the default there are none.
        pages = "public_url" in self.model_fields_set
        key = self.derive(one_time.PURPOSE)
        return Mailer(server, self.mail_from, self.public_url, key, pages=pages)

    def passwords(self) -> Passwords:
        """Returns what hashes and verifies passwords; to be closed."""
        return Passwords(
            memory_kib=self.argon2_memory_kib,
            time_cost=self.argon2_time_cost,
            queue=self.argon2_queue,
            processes=self.argon2_processes,
        )

    webauthn_rp_id: str = Field(LOCAL.id, min_length=1)
    """The domain passkeys are bound to; those made for one work with no other."""
    webauthn_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """JSON: pages that may ask for passkeys; none is https://<rp id>, for localhost port 3000."""

    @field_validator("webauthn_origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "[]")
        except ValueError as error:
            raise ValueError('must be JSON such as ["https://finity.ai"]') from error

    def relying_party(self) -> RelyingParty:
        """Returns whom passkeys are made for."""
        local = self.webauthn_rp_id == LOCAL.id
        own = LOCAL.origins if local else (f"https://{self.webauthn_rp_id}",)
        return RelyingParty(self.webauthn_rp_id, self.webauthn_origins or own)

    def registrations(self) -> Limit:
        """Returns how fast one address may make accounts."""
        return Limit("register", free=self.registrations_per_address, first=1.0, longest=900.0)

    def guesses(self) -> Guesses:
        """Returns how fast passwords and codes may be guessed."""
        return Guesses(
            pair=Limit("pair", free=self.guesses_per_pair, first=1.0, longest=900.0),
            account=Limit("account", free=self.guesses_per_account, first=1.0, longest=60.0),
            address=Limit("address", free=self.guesses_per_address, first=1.0, longest=900.0),
        )

    def session_policy(self) -> SessionPolicy:
        """Returns the lifetimes as the domain's rules take them."""
        return SessionPolicy(
            access_token=timedelta(seconds=self.access_token_seconds),
            idle=timedelta(days=self.session_idle_days),
            absolute=timedelta(days=self.session_days),
            grace=timedelta(seconds=self.refresh_grace_seconds),
            reuse=timedelta(seconds=self.refresh_reuse_seconds),
            key_delay=timedelta(seconds=self.signing_key_delay_seconds),
        )
