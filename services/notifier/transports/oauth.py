"""How a service account's access token is got and kept (RFC 7523, as Google's token endpoint speaks it)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import jwt
import msgspec
from pyreqwest.client import Client
from pyreqwest.exceptions import PyreqwestError

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_LIFETIME_SECONDS = 3600
_EARLY_MS = 300_000


class ServiceAccount(msgspec.Struct, frozen=True):
    """What Google's service-account file says; other fields are ignored."""

    project_id: str
    client_email: str
    private_key: str
    token_uri: str
    private_key_id: str = ""

    def __repr__(self) -> str:
        return f"ServiceAccount({self.client_email})"


def read_service_account(path: Path) -> ServiceAccount:
    """ValueError with what is missing; OSError if the file cannot be read."""
    return msgspec.json.decode(path.read_bytes(), type=ServiceAccount)


class TokenUnavailable(Exception):
    """No token now; another try may succeed."""


class TokenRefused(Exception):
    """The token endpoint does not accept this service account."""


class AccessToken:
    """One service account's token, kept until five minutes before it expires.

    However many ask at once, one request is made; all of them get its token, or its failure. `real_ms` must be
    the machine's time, whatever the product's is: both ends check it.
    """

    def __init__(self, account: ServiceAccount, client: Client, real_ms: Callable[[], int]) -> None:
        self._account = account
        self._client = client
        self._real_ms = real_ms
        self._token = ""
        self._good_until_ms = 0
        self._refresh: asyncio.Task[str] | None = None

    async def get(self, refused: str = "") -> str:
        """The token; not `refused`, which the provider has just turned down. Raises TokenUnavailable, TokenRefused."""
        if self._token and self._token != refused and self._real_ms() < self._good_until_ms:
            return self._token
        if self._refresh is None:
            self._refresh = asyncio.create_task(self._fetch(), name="oauth-refresh")
            self._refresh.add_done_callback(self._refreshed)
        # Shielded: one impatient caller must not take the token from the others.
        return await asyncio.shield(self._refresh)

    async def close(self) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)

    def _refreshed(self, task: asyncio.Task[str]) -> None:
        self._refresh = None
        if not task.cancelled():
            task.exception()  # seen, even if every caller has gone

    async def _fetch(self) -> str:
        now = self._real_ms() // 1000
        claims = {
            "iss": self._account.client_email,
            "scope": SCOPE,
            "aud": self._account.token_uri,
            "iat": now,
            "exp": now + _LIFETIME_SECONDS,
        }
        try:
            assertion = jwt.encode(
                claims, self._account.private_key, algorithm="RS256", headers={"kid": self._account.private_key_id}
            )
        except (ValueError, TypeError, jwt.PyJWTError) as error:
            raise TokenRefused(f"the private key of {self._account.client_email} cannot sign: {error}") from error
        form = urlencode({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion})
        try:
            request = self._client.post(self._account.token_uri).body_text(form)
            answer = await request.header("Content-Type", "application/x-www-form-urlencoded").build().send()
            status, body = answer.status, bytes(await answer.bytes())
        except PyreqwestError as error:
            raise TokenUnavailable(f"token endpoint: {type(error).__name__}: {error}") from error
        if 400 <= status < 500 and status not in (408, 429):
            raise TokenRefused(f"token endpoint answered {status}: {body[:200].decode(errors='replace')}")
        try:
            told = msgspec.json.decode(body, type=_TokenAnswer)
        except msgspec.DecodeError as error:
            raise TokenUnavailable(f"token endpoint answered {status}") from error
        if status != 200:
            raise TokenUnavailable(f"token endpoint answered {status}")
        self._token = told.access_token
        self._good_until_ms = now * 1000 + told.expires_in * 1000 - _EARLY_MS
        return self._token


class _TokenAnswer(msgspec.Struct):
    access_token: str
    expires_in: int
