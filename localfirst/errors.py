"""
What can go wrong, as one tree.

    LocalFirstError                 code, message, hint, http status, retryable
      ConfigError             503   a setting, its source and the accepted form
      InvalidRequest          400   the field
        ModelNameInvalid      400
        ContextTooLong        413   longer than every candidate's window
        ContentFiltered       400
        BodyTooLarge          413
        UnknownModel          404   with the nearest names
      AccessDenied            403   the gateway's door: host, origin, key
      InsufficientResources   507   disk | ram | vram: needed and available bytes
      PrivacyRefused          403   the request may not leave this machine
      Unavailable             503   try again later
        EngineUnavailable           not installed, not running, crash loop
        CascadeExhausted            every attempt, its class, what to do
      PullError               502   kept what was fetched, unless it was false
        PullStalled  RegistryRefused  DigestMismatch  PullCancelled
      StreamInterrupted       502   the answer was cut after its first content
      DeadlineExceeded        504
      VerificationFailed      502   bytes on disk or in a lock do not match

    UpstreamError                   not for callers: raised inside one attempt, classified
      UpstreamRefused               an HTTP error status or an in-band error, with its body
      UpstreamBroken                connect, reset, cut, timed out: which one says `Breakage`
      UpstreamNonsense              an answer that is no answer: empty, HTML, malformed

`code` is kebab-case and stable. Text is lower case, names things in backticks, and never
holds a key or a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from localfirst.types import Attempt, FailureClass


class LocalFirstError(Exception):
    """Base of everything localfirst raises on purpose."""

    code = "localfirst-error"
    hint = "run `localfirst doctor` to see what this machine can do"
    http_status = 500
    retryable = False
    exit_code = 1
    attempts: tuple[Attempt, ...] = ()
    """What was tried before it came to this; filled by the cascade for any error it raises."""
    egress: tuple[str, ...] | None = None
    """Who outside was sent the request, as far as the cascade knows; one's own server is not."""

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        if hint:
            self.hint = hint
        if code:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:  # a pool of processes hands errors on
        return Exception.__new__, (type(self), *self.args), self.__dict__


class ConfigError(LocalFirstError):
    """Raised when a setting is unknown, malformed or missing."""

    code = "config-invalid"
    hint = "run `localfirst config` to see every setting and where it comes from"
    http_status = 503
    exit_code = 2

    def __init__(
        self, message: str, *, setting: str = "", source: str = "", hint: str = "", code: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.setting, self.source = setting, source


class InvalidRequest(LocalFirstError):
    """Raised when a request is wrong in itself; `field` is its path (`messages[2].content`)."""

    code = "invalid-request"
    hint = "correct the named field and send the request again"
    http_status = 400
    exit_code = 2

    def __init__(self, message: str, *, field: str = "", hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.field = field


class ModelNameInvalid(InvalidRequest):
    """Raised when a model's name does not follow the grammar."""

    code = "model-name-invalid"
    hint = "a name is `[host/][namespace/]model[:tag]`, for example `llama3.2:3b`"


class ContextTooLong(InvalidRequest):
    """Raised when the prompt is longer than every candidate's context window."""

    code = "context-too-long"
    hint = "shorten the prompt, raise `num_ctx`, or name a model with a larger window"
    http_status = 413


class ContentFiltered(InvalidRequest):
    """Raised when a provider refused the content of the request."""

    code = "content-filtered"
    hint = "the provider refused the content; localfirst does not send it elsewhere"


class BodyTooLarge(InvalidRequest):
    """Raised when a request body is larger than the gateway accepts."""

    code = "body-too-large"
    hint = "send at most 32 MiB"
    http_status = 413


class UnknownModel(InvalidRequest):
    """Raised when no installed, cloud or route name matches; `nearest` are suggestions."""

    code = "model-not-found"
    hint = "run `localfirst list` for installed models and `localfirst providers` for clouds"
    http_status = 404

    def __init__(
        self, message: str, *, nearest: Sequence[str] = (), field: str = "model", hint: str = ""
    ) -> None:
        meant = " or ".join(f"`{one}`" for one in nearest)
        hint = f"did you mean {meant}? {hint or self.hint}" if meant else hint
        super().__init__(message, field=field, hint=hint)
        self.nearest = tuple(nearest)


class AccessDenied(LocalFirstError):
    """Raised at the gateway's door; `allow` names the methods that a path takes, with a 405."""

    code = "access-denied"
    hint = "see the security model in the README"
    http_status = 403

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int = 403,
        hint: str = "",
        allow: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.http_status = status
        self.allow = tuple(allow)


class InsufficientResources(LocalFirstError):
    """Raised before the first byte when disk or memory will not do."""

    code = "insufficient-resources"
    hint = "run `localfirst recommend` for models that fit this machine"
    http_status = 507
    exit_code = 4

    def __init__(
        self, message: str, *, kind: str, needed_bytes: int, available_bytes: int, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=f"insufficient-{kind}")
        self.kind = kind
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


class PrivacyRefused(LocalFirstError):
    """Raised where a socket would have left this machine against `privacy = "local-only"`."""

    code = "privacy-refused"
    hint = 'set `privacy = "allow-cloud"`, or use a local model'
    http_status = 403


class Unavailable(LocalFirstError):
    """Raised when nothing is wrong with the request and later may do; see `retry_after_s`."""

    code = "unavailable"
    http_status = 503
    retryable = True
    exit_code = 3

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, hint: str = "", code: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.retry_after_s = retry_after_s


class EngineUnavailable(Unavailable):
    """Raised when no local engine runs and none can be started."""

    code = "engine-unavailable"
    hint = "install Ollama, or `pip install 'localfirst-runtime[embedded]'`"


class CascadeExhausted(Unavailable):
    """
    Raised when the ladder ended without an answer.

    `attempts` lists every try, `skipped` the rungs that were not tried with their reason
    (`(provider, reason)`), and `dominating` the class that decides `http_status`.
    """

    code = "cascade-exhausted"
    hint = "each attempt above says what would make it work"

    def __init__(
        self,
        message: str,
        *,
        attempts: Sequence[Attempt] = (),
        skipped: Sequence[tuple[str, str]] = (),
        dominating: FailureClass = FailureClass.CONFIG,
        http_status: int = 503,
        retry_after_s: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, hint=hint)
        self.attempts = tuple(attempts)
        self.skipped = tuple(skipped)
        self.dominating = dominating
        self.http_status = http_status


class PullError(LocalFirstError):
    """Raised when a download failed; what was fetched and is true is kept."""

    code = "pull-failed"
    hint = "run the same `localfirst pull` again: it goes on where it stopped"
    http_status = 502
    retryable = True


class PullStalled(PullError):
    """Raised when a download made no progress for too long."""

    code = "pull-stalled"


class RegistryRefused(PullError):
    """Raised when a registry answered with an error; `status` is its HTTP status or None."""

    code = "registry-refused"

    def __init__(
        self, message: str, *, status: int | None = None, hint: str = "", code: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.status = status
        if status == 404:
            self.http_status = 404


class DigestMismatch(PullError):
    """Raised when downloaded bytes do not have the digest the manifest names."""

    code = "digest-mismatch"
    hint = "the bytes were thrown away; pull again, and check the mirror or proxy if it recurs"
    exit_code = 5


class PullCancelled(PullError):
    """Raised when a download was cancelled; its bytes are kept for the next time."""

    code = "pull-cancelled"


class VerificationFailed(LocalFirstError):
    """Raised when files on disk, in a bundle or in a lock are not what they should be."""

    code = "verification-failed"
    hint = "run `localfirst verify --repair`"
    http_status = 502
    exit_code = 5


class StreamInterrupted(LocalFirstError):
    """Raised when an answer was cut after content had been handed over; never retried silently."""

    code = "stream-interrupted"
    hint = "send the request again; the part you have is not the whole answer"
    http_status = 502
    retryable = True

    def __init__(
        self, message: str, *, cls: FailureClass = FailureClass.NETWORK, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.cls = cls


class DeadlineExceeded(LocalFirstError):
    """Raised when the whole ladder's time ran out."""

    code = "deadline-exceeded"
    hint = "raise `cascade.deadline_s`, or ask for a smaller model"
    http_status = 504
    retryable = True
    exit_code = 3


# --- inside one attempt ------------------------------------------------------------------


class Breakage(StrEnum):
    """How a connection failed, in the order of its life."""

    OFFLINE = "offline"
    DNS = "dns"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    TLS = "tls"
    PROXY = "proxy"
    WRITE_TIMEOUT = "write_timeout"
    RESET = "reset"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    STALL_TIMEOUT = "stall_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    CUT = "cut"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    ENCODING = "encoding"
    PROTOCOL = "protocol"
    ENGINE_DIED = "engine_died"


class UpstreamError(Exception):
    """Base of what one attempt may raise; `cascade.classify` turns each into a `Failure`."""

    before: tuple[Exception, ...] = ()
    """Refusals that the same attempt met and learnt from, each a request sent."""


class UpstreamRefused(UpstreamError):
    """
    Raised for an error status or an error inside a 200.

    `headers` are lower-cased pairs, `body` the bytes of the error (bounded, unredacted:
    only the classifier reads it); `unsent`: our own refusal, before anything was sent.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        headers: Sequence[tuple[str, str]] = (),
        *,
        in_band: bool = False,
        unsent: bool = False,
    ) -> None:
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.body = body
        self.headers = tuple(headers)
        self.in_band, self.unsent = in_band, unsent


class UpstreamBroken(UpstreamError):
    """Raised when the connection, not the answer, failed."""

    def __init__(self, breakage: Breakage, detail: str = "") -> None:
        super().__init__(f"{breakage}: {detail}" if detail else str(breakage))
        self.breakage = breakage
        self.detail = detail


class UpstreamNonsense(UpstreamError):
    """Raised when an answer came and means nothing: empty, HTML, malformed, fails its schema."""


CHAIN_MOST = 16
"""Errors that one may have come from; a chain may be a circle."""


def let_go(error: BaseException) -> None:
    """
    Drop the tracebacks of a handled error and of those it came from.

    They hold frames, frames hold bodies and sockets, and some of these hold the error: a
    circle that waits for the next look for garbage, megabytes with it.
    """
    for _ in range(CHAIN_MOST):
        error.__traceback__ = None
        before = error.__cause__ or error.__context__
        if before is None:
            return
        error = before
