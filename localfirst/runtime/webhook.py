"""One POST to a person's webhook: short, never followed elsewhere, never off a private machine."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from localfirst.errors import PrivacyRefused
from localfirst.settings import Privacy
from localfirst.transport import http
from localfirst.types import Json


class Webhook:
    """Posts JSON; raises whatever went wrong, without the URL (it may hold a token)."""

    def __init__(self, privacy: Privacy) -> None:
        self._privacy = privacy

    async def __call__(self, url: str, body: Mapping[str, Json]) -> None:
        """POST *body* to *url*; a status of 400 and above is an error."""
        host = urlsplit(url).hostname or ""
        if self._privacy is Privacy.LOCAL_ONLY and not http.is_loopback(host):
            raise PrivacyRefused("a webhook is not called under `local-only`")
        async with http.client(url, connect_s=5.0, read_s=10.0) as client:
            answer = await client.post(url, json=dict(body))
            if answer.status_code >= 300:
                raise ConnectionError(f"answered {answer.status_code}")
