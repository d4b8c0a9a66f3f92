"""
Who we are to a registry: nobody, a user with a password, or an Ollama key.

Reads `WWW-Authenticate`, builds the request for a token, and signs it with the Ed25519 key
of `~/.ollama` where the `cryptography` package is there. Credentials go to the registry's
own host (and Hugging Face's two names of one host) and nowhere else. No I/O but that key.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import msgspec

from localfirst.models.pull_errors import Refused
from localfirst.transport.bulk import origin
from localfirst.transport.http import is_loopback

# One service under two names; its token realm names the long one.
SAME_HOST = (frozenset({"hf.co", "huggingface.co"}),)
# base64(hex(sha256(b""))): the body hash that Ollama's signature covers (server/auth.go).
EMPTY_BODY_HASH = (
    "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
)
_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))')


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """A 401's demand: "bearer" with a realm, or "basic"."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def read_challenge(header: str | None) -> Challenge | None:
    """What `WWW-Authenticate` asks for; None when it is missing or of another kind."""
    if not header:
        return None
    scheme, _, rest = header.strip().partition(" ")
    found = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
    if scheme.lower() == "basic":
        return Challenge(scheme="basic")
    if scheme.lower() != "bearer" or not found.get("realm"):
        return None
    return Challenge(
        scheme="bearer",
        realm=found["realm"],
        service=found.get("service", ""),
        scope=found.get("scope", ""),
    )


def same_service(one: str, other: str) -> bool:
    """Whether two URLs are of one origin, or of two names of one service."""
    a, b = origin(one), origin(other)
    if a == b:
        return True
    return a[0] == b[0] == "https" and any({a[1], b[1]} <= names for names in SAME_HOST)


def basic_of(url: str) -> str:
    """The `Authorization` value for the user and password in *url*, or ""."""
    parts = urlsplit(url)
    if not parts.username:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def without_user(url: str) -> str:
    """*url* without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def first_authorization(url: str, environ: Mapping[str, str]) -> str:
    """What to send before any challenge: a mirror's password, or `HF_TOKEN` to Hugging Face."""
    host = origin(url)[1]
    token = environ.get("HF_TOKEN", "").strip()
    if token and any(host in names for names in SAME_HOST) and url.startswith("https:"):
        return f"Bearer {token}"
    return basic_of(url)


def token_request(
    challenge: Challenge, registry: str, *, now_unix: float, environ: Mapping[str, str]
) -> tuple[str, str]:
    """
    The URL to ask for a token, and the `Authorization` to ask with ("" = as nobody).

    Raises:
        Refused: the realm is not https, or on another host than credentials may go to.
    """
    try:
        there = origin(challenge.realm)
    except ValueError:
        raise Refused("the registry wants tokens from something that is no URL") from None
    if there[0] != "https" and not (there[0] == "http" and is_loopback(there[1])):
        raise Refused(
            f"the registry wants tokens from `{challenge.realm[:100]}`, which is not https"
        )
    query = [("nonce", secrets.token_urlsafe(16))]
    query += [("scope", part) for part in challenge.scope.split()]
    query += [("service", challenge.service)] if challenge.service else []
    query += [("ts", str(int(now_unix)))]
    mark = "&" if urlsplit(challenge.realm).query else "?"
    url = without_user(challenge.realm) + mark + urlencode(query)
    if not same_service(challenge.realm, registry):
        return url, ""  # docker registries have their token server elsewhere; go as nobody
    return url, basic_of(registry) or sign(url, environ)


def sign(url: str, environ: Mapping[str, str]) -> str:
    """Ollama's signature of a token request; "" without a key or without `cryptography`."""
    home = environ.get("HOME") or environ.get("USERPROFILE")
    if not home:
        return ""
    key = Path(home) / ".ollama" / "id_ed25519"
    try:
        # An optional package, without types for those who lack it.
        keys = import_module("cryptography.hazmat.primitives.serialization")
        private = keys.load_ssh_private_key(key.read_bytes(), password=None)
        public = key.with_suffix(".pub").read_text().split()[1]
    except (ImportError, OSError, ValueError, IndexError):
        return ""
    signature = private.sign(f"GET,{url},{EMPTY_BODY_HASH}".encode())
    return f"{public}:{base64.b64encode(signature).decode()}"
