"""Identity providers as auth sees them: who somebody is there, and nothing of their protocols."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Protocol as Interface

from chassis.clock import Clock
from services.auth.domain.oauth import FlowSecrets, Proof, Protocol, Provider
from services.auth.errors import OAuthProviderUnknown
from services.auth.providers.github import GitHub
from services.auth.providers.http import Web, open_web
from services.auth.providers.oidc import OpenIdProvider


class IdentityProvider(Interface):
    """One provider, whatever its protocol."""

    provider: Provider

    async def announces_issuer(self) -> bool:
        """Tells whether every answer carries "iss" (RFC 9207)."""
        ...

    async def authorization_url(self, redirect_uri: str, secrets: FlowSecrets) -> str:
        """Returns where to send the browser."""
        ...

    async def prove(self, code: str, redirect_uri: str, secrets: FlowSecrets) -> Proof:
        """Exchanges a code, once, for who somebody is."""
        ...


class Providers:
    """The configured providers by name."""

    def __init__(self, providers: Iterable[Provider], web: Web, clock: Clock) -> None:
        self._providers: dict[str, IdentityProvider] = {
            provider.name: GitHub(provider, web)
            if provider.protocol is Protocol.GITHUB
            else OpenIdProvider(provider, web, clock)
            for provider in providers
        }

    def get(self, name: str) -> IdentityProvider:
        """Returns a provider; OAuthProviderUnknown if none has the name."""
        found = self._providers.get(name)
        if found is None:
            raise OAuthProviderUnknown
        return found


@contextlib.asynccontextmanager
async def open_providers(providers: Iterable[Provider], clock: Clock) -> AsyncIterator[Providers]:
    """The configured providers over one HTTP client, closed at the end."""
    async with open_web() as web:
        yield Providers(providers, web, clock)
