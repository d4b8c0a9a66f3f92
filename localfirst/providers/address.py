"""Which addresses a provider may have: https anywhere, plain http only where nobody listens in."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from localfirst.errors import ConfigError
from localfirst.transport.http import is_loopback

# Names that no public resolver answers: RFC 6762, RFC 8375, ICANN's reservation of `internal`,
# and single labels such as a container's name.
_PRIVATE_SUFFIXES = (".local", ".internal", ".lan", ".home.arpa", ".localhost")


def check_base_url(provider: str, url: str) -> str:
    """
    *url* without its last slash.

    Raises:
        ConfigError: no URL, credentials, a query or fragment in it, or plain http to a host
            that is neither this machine nor in a private network.
    """
    setting = f"providers.{provider}.base_url"
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in {"http", "https"} or not host or not _is_plain(url.strip()):
        raise _wrong(setting, "must be `https://host/path`")
    if "@" in parts.netloc:
        raise _wrong(setting, "must not hold credentials; put the key into `keys`")
    if parts.query or parts.fragment:
        raise _wrong(setting, "must not hold a query or a fragment")
    if parts.scheme == "http" and not is_private(host):
        raise _wrong(setting, "is plain http to a public host; use https")
    return url.strip().rstrip("/")


def is_private(host: str) -> bool:
    """Whether *host* is this machine or cannot be reached from the open network."""
    if is_loopback(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_SUFFIXES)
    # Link-local addresses hold the metadata services of clouds.
    return address.is_private and not address.is_link_local and not address.is_unspecified


def _is_plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and " " not in url and "\\" not in url


def _wrong(setting: str, why: str) -> ConfigError:
    return ConfigError(f"`{setting}` {why}", setting=setting)
