"""What went wrong in a pull is told with its own code, its next step, and no secret."""

from __future__ import annotations

import errno
import socket
import ssl
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest

from localfirst.errors import (
    DigestMismatch,
    InsufficientResources,
    PullError,
    PullStalled,
    RegistryRefused,
)
from localfirst.models.pull_errors import broken, clean, is_passing, refused, retry_after_s

NOW = 1_795_176_000.0


def caused(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


BROKEN = [
    (caused(httpx.ConnectError("no"), socket.gaierror(-2, "Name or service not known")),
     "registry-dns", "Name or service not known"),
    (caused(httpx.ConnectError("no"), ssl.SSLCertVerificationError("self-signed")),
     "registry-tls", "self-signed"),
    (httpx.ProxyError("407 Proxy Authentication Required"), "registry-proxy", "407"),
    (OSError("Tunnel connection failed: 403"), "registry-proxy", "Tunnel connection failed"),
    (httpx.ConnectTimeout(""), "registry-unreachable", "ConnectTimeout"),
    (ConnectionRefusedError(111, "Connection refused"), "registry-unreachable", "broke the"),
    (httpx.ReadTimeout("slow"), "pull-stalled", "sent nothing"),
    (httpx.WriteTimeout("slow"), "pull-stalled", "sent nothing"),
    (TimeoutError(), "pull-stalled", "sent nothing"),
    (OSError(errno.ENOSPC, "No space left", "/m/data"), "insufficient-disk", "full at `/m/data`"),
    (OSError(errno.EDQUOT, "Quota exceeded"), "insufficient-disk", "the disk is full; what"),
    (PermissionError(errno.EACCES, "Permission denied", "/m"), "store-not-writable", "at `/m`"),
    (OSError(errno.EPERM, "Operation not permitted", "/m"), "store-not-writable", "at `/m`"),
    (OSError(errno.EROFS, "Read-only file system", "/m"), "store-not-writable", "Read-only"),
    # The same number of a socket is the network's (a firewall's), not the store's.
    (PermissionError(errno.EACCES, "Permission denied"), "registry-unreachable", "broke the"),
    (OSError(errno.EFBIG, "File too large"), "store-file-limit", "cannot hold a file this large"),
    (OSError(errno.EIO, "Input/output error", "/m/data"), "store-failed", "Input/output error"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/m"), "store-failed", "at `/m`"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/m"), "store-failed", "at `/m`"),
    (OSError(errno.ELOOP, "Too many levels"), "store-failed", "Too many levels"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "told"), BROKEN)
def test_an_exception_gets_its_code_and_its_words(
    error: BaseException, code: str, told: str
) -> None:
    found = broken(error, "registry.example")
    assert found.code == code
    assert told in found.message
    assert found.hint


def test_an_error_of_our_own_stays_what_it_is_however_deep_it_lies() -> None:
    own = DigestMismatch("other bytes")
    assert broken(caused(ValueError("x"), caused(OSError("y"), own)), "h") is own
    # A disk that is full is the cause, whatever the connection said for it.
    full = caused(httpx.ReadTimeout("slow"), OSError(errno.ENOSPC, "No space left"))
    assert isinstance(broken(full, "h"), InsufficientResources)
    loop = ValueError("round")
    caused(loop, caused(KeyError("and round"), loop))
    assert broken(loop, "h").code == "registry-unreachable"


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        (401, "registry-unauthorized", False),
        (403, "registry-unauthorized", False),
        (404, "model-not-in-registry", False),
        (407, "registry-proxy", False),
        (408, "registry-unavailable", True),
        (410, "model-not-in-registry", False),
        (425, "registry-refused", True),
        (429, "registry-rate-limited", True),
        (418, "registry-refused", False),
        (500, "registry-unavailable", True),
        (501, "registry-unavailable", False),
        (503, "registry-unavailable", True),
        (524, "registry-unavailable", True),
    ],
)
def test_a_status_gets_its_code_and_whether_it_passes(status: int, code: str, passes: bool) -> None:
    found = refused(status, "h", "tiny:latest", b"no\xff way", retry_after_s=7.0)
    assert (found.code, found.status, found.retry_after_s) == (code, status, 7.0)
    assert found.retryable is is_passing(found) is passes
    assert found.message == f"`h` answered {status} for tiny:latest: no\ufffd way"
    assert refused(status, "h", "x").message == f"`h` answered {status} for x"
    assert found.http_status == (404 if status == 404 else 502)


def test_what_passes_and_what_does_not() -> None:
    for code in ("registry-dns", "registry-proxy", "registry-unreachable"):
        assert is_passing(PullError("x", code=code))
    assert is_passing(PullStalled("x"))
    assert not is_passing(PullError("x", code="store-failed"))
    assert not is_passing(RegistryRefused("x"))
    assert not is_passing(OSError())
    assert not broken(OSError(errno.EFBIG, "large"), "h").retryable
    assert not broken(ssl.SSLError("no"), "h").retryable
    assert broken(TimeoutError(), "h").retryable


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        (None, None), ("", None), ("7", 7.0), (" 7.5 ", 7.5), ("99999", 600.0), ("-1", None),
        ("soon", None), ("1e3", None), (format_datetime(datetime.fromtimestamp(NOW + 30, UTC)), 30),
        (format_datetime(datetime.fromtimestamp(NOW - 30, UTC)), 0.0),
        (format_datetime(datetime.fromtimestamp(NOW + 9999, UTC)), 600.0),
        ("Fri, 99 Foo 2026 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_a_wait_is_read_and_bounded(value: str | None, wait_s: float | None) -> None:
    assert retry_after_s(value, NOW) == wait_s


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://user:secret@host/v2 now", "at https://host/v2 now"),
        ("at http://user:se@cr@et@host:8080", "at http://host:8080"),
        ("GET https://cdn/blob?sig=secret&x=1 failed", "GET https://cdn/blob?… failed"),
        ("https://host?mail=a@b", "https://host?…"),
        ("a\r\nb\x1b[31m\tc", "a b [31m c"),
        ("x" * 900, "x" * 200),
    ],
)
def test_foreign_words_are_one_line_without_secrets(text: str, shown: str) -> None:
    assert clean(text) == shown
