"""
GitHub: OAuth 2.0 with PKCE and no ID token.

Who somebody is, its API says: the numeric id, which never changes hands as names
do, and the primary e-mail address with whether GitHub verified it.
"""

from urllib.parse import urlencode, urlsplit

from services.auth.domain.oauth import FlowSecrets, Proof, Provider, usable_subject
from services.auth.errors import EmailNotVerifiedByProvider, OAuthCodeInvalid
from services.auth.providers.http import Web, unavailable

_ACCEPT = "application/vnd.github+json"
_CODE_ERRORS = {"bad_verification_code", "invalid_grant"}


class GitHub:
    """github.com, or a GitHub Enterprise Server of other addresses."""

    def __init__(self, provider: Provider, web: Web) -> None:
        self.provider = provider
        self._web = web
        self._host = urlsplit(provider.base_url).hostname or ""

    async def announces_issuer(self) -> bool:
        return False

    async def authorization_url(self, redirect_uri: str, secrets: FlowSecrets) -> str:
        query = {
            "client_id": self.provider.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.provider.scopes),
            "state": secrets.state,
            "code_challenge": secrets.challenge,
            "code_challenge_method": "S256",
        }
        return f"{self.provider.base_url}/login/oauth/authorize?{urlencode(query)}"

    async def prove(self, code: str, redirect_uri: str, secrets: FlowSecrets) -> Proof:
        """
        Exchanges a code for who somebody is.

        OAuthCodeInvalid, EmailNotVerifiedByProvider for an account GitHub lets nobody
        use yet, OAuthProviderUnavailable.
        """
        token = await self._exchange(code, redirect_uri, secrets)
        api = self.provider.api_url
        user = (await self._web.get(f"{api}/user", token=token, accept=_ACCEPT)).document
        subject = user.get("id") if isinstance(user, dict) else None
        if not isinstance(subject, int) or not usable_subject(str(subject)):
            raise unavailable(self._host, "no user id")
        email, verified = await self._primary_email(token)
        return Proof(self.provider.name, str(subject), email, verified)

    async def _exchange(self, code: str, redirect_uri: str, secrets: FlowSecrets) -> str:
        form = {
            "client_id": self.provider.client_id,
            "client_secret": self.provider.client_secret,
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": secrets.verifier,
        }
        reply = await self._web.post(f"{self.provider.base_url}/login/oauth/access_token", form)
        # Errors come with status 200.
        if reply.error in _CODE_ERRORS:
            raise OAuthCodeInvalid
        if reply.error == "unverified_user_email":
            raise EmailNotVerifiedByProvider
        token = reply.document.get("access_token") if isinstance(reply.document, dict) else None
        if not reply.ok or not isinstance(token, str) or not token:
            raise unavailable(self._host, reply.error or "no access token")
        return token

    async def _primary_email(self, token: str) -> tuple[str, bool]:
        url = f"{self.provider.api_url}/user/emails?per_page=100"
        reply = await self._web.get(url, token=token, accept=_ACCEPT)
        # Without the scope user:email the list is refused, and no address is known.
        if reply.ok and isinstance(reply.document, list):
            for entry in reply.document:
                if isinstance(entry, dict) and entry.get("primary") is True:
                    return str(entry.get("email", "")), entry.get("verified") is True
        return "", False
