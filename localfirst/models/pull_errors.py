"""
What went wrong in a pull, each with its own code and next step.

One function reads exceptions (of httpx, of sockets, of files alike, through their chain of
causes), one reads HTTP statuses. Neither shows a signed URL, a token or a proxy's password.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from localfirst.errors import (
    InsufficientResources,
    LocalFirstError,
    PullError,
    PullStalled,
    RegistryRefused,
)


class Refused(RegistryRefused):
    """A refusal that may say when to come back."""

    retry_after_s: float | None = None


RETRY_AFTER_LIMIT_S = 600.0
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})

_HINTS = {
    "registry-dns": "check the network and the registry's name; offline, use `localfirst bundle`",
    "registry-tls": "behind an inspecting proxy set `SSL_CERT_FILE` to the company's CA bundle",
    "registry-proxy": "check `HTTPS_PROXY` and `NO_PROXY`, with user and password if it asks",
    "registry-unreachable": "check the network; what was fetched is kept, so pull again later",
    "registry-unauthorized": "give credentials: `HF_TOKEN` for Hugging Face, "
    "`https://USER:PASSWORD@HOST` under `pull.mirrors` for your own registry",
    "model-not-in-registry": "check the spelling and the tag on the registry's site",
    "registry-rate-limited": "wait, then pull again; fewer `--connections` help",
    "registry-unavailable": "the registry has trouble; pull again later, nothing is lost",
    "store-file-limit": "FAT32 ends at 4 GiB, and `ulimit -f` may limit too: "
    "move the store to another filesystem with `OLLAMA_MODELS`",
    "store-not-writable": "pull into a store of your own with `OLLAMA_MODELS`, "
    "or let a running Ollama pull",
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def broken(error: BaseException, host: str) -> LocalFirstError:
    """The error for an exception met while talking to *host* or writing to the store."""
    links = list(chain(error))
    for link in links:
        if isinstance(link, LocalFirstError):
            return link
    for link in links:
        if isinstance(link, OSError) and (own := _of_files(link)):
            return own
    for link in links:
        code = _kind(link)
        if code:
            return _made(code, f"`{host}`: {_reason(link)}", None)
    if any(_is_timeout(link) for link in links):
        return PullStalled(f"`{host}` sent nothing for too long")
    reason = _reason(links[-1])
    return _made("registry-unreachable", f"`{host}` broke the connection: {reason}", None)


def _reason(error: BaseException) -> str:
    """What went wrong in words; of the system's errors without their number."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return clean(said) or type(error).__name__


def refused(
    status: int, host: str, what: str, body: bytes = b"", *, retry_after_s: float | None = None
) -> Refused:
    """The error for an HTTP status; *what* was asked for names the model or blob."""
    said = clean(body[:300].decode(errors="replace"))
    text = f"`{host}` answered {status} for {what}" + (f": {said}" if said else "")
    code = {401: "registry-unauthorized", 403: "registry-unauthorized", 407: "registry-proxy"}.get(
        status, ""
    )
    if status in {404, 410}:
        code = "model-not-in-registry"
    elif status == 429:
        code = "registry-rate-limited"
    elif status >= 500 or status == 408:
        code = "registry-unavailable"
    error = _made(code, text, status)
    error.retryable = status in PASSING_STATUSES
    error.retry_after_s = retry_after_s
    return error


def retry_after_s(value: str | None, now_unix: float) -> float | None:
    """Seconds to wait from a `Retry-After` header (seconds or a date), or None."""
    if not value:
        return None
    text = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return min(float(text), RETRY_AFTER_LIMIT_S)
    try:
        wait = parsedate_to_datetime(text).timestamp() - now_unix
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(wait, 0.0), RETRY_AFTER_LIMIT_S)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may work a moment later."""
    if isinstance(error, RegistryRefused) and error.status is not None:
        return error.status in PASSING_STATUSES
    return isinstance(error, PullError) and error.code in {
        "registry-dns",
        "registry-proxy",
        "registry-unreachable",
        "pull-stalled",
    }


def clean(text: str) -> str:
    """Foreign text on one line, without URLs' secrets and control characters, cut short."""
    text = re.sub(r"(https?://)[^/?\s]*@", r"\1", text)
    text = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())[:200]


def _of_files(error: OSError) -> LocalFirstError | None:
    """Errors of the store itself; sockets never raise these numbers."""
    where = f" at `{error.filename}`" if error.filename else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return InsufficientResources(
            f"the disk is full{where}; what was fetched is kept",
            kind="disk",
            needed_bytes=0,
            available_bytes=0,
            hint="free some space (`localfirst pulls`, `localfirst rm`), then pull again",
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} and error.filename:
        return _store_error(
            f"the store cannot be written{where}: {error.strerror}", "store-not-writable"
        )
    if error.errno == errno.EFBIG:
        return _store_error(
            f"the store's filesystem cannot hold a file this large{where}", "store-file-limit"
        )
    if error.errno in {errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}:
        return PullError(f"the store failed{where}: {error.strerror}", code="store-failed")
    return None


def _store_error(message: str, code: str) -> PullError:
    made = PullError(message, code=code, hint=_HINTS[code])
    made.retryable = False
    return made


def _kind(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return "registry-tls"
    if isinstance(error, socket.gaierror):
        return "registry-dns"
    if type(error).__name__ == "ProxyError" or "Tunnel connection failed" in str(error):
        return "registry-proxy"
    if type(error).__name__ == "ConnectTimeout":
        return "registry-unreachable"
    return ""


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__ in {
        "ReadTimeout",
        "WriteTimeout",
    }


def _made(code: str, message: str, status: int | None) -> Refused:
    error = Refused(message, status=status, hint=_HINTS.get(code, ""), code=code)
    error.retryable = code != "registry-tls"
    return error
