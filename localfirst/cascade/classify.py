"""
What a failure means: its class, its scope, and how long to stay away.

One ladder of questions, the most telling first: structured fields before words, words
about money before statuses about rates, and a status alone only when nothing better was
said. Pure: `failure()` sees bytes and a time, and decides.
"""

from __future__ import annotations

import re

from localfirst.cascade import classify_body, classify_wait
from localfirst.cascade import classify_words as words
from localfirst.cascade.classify_body import Complaint
from localfirst.errors import (
    Breakage,
    EngineUnavailable,
    InsufficientResources,
    LocalFirstError,
    PrivacyRefused,
    UpstreamBroken,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from localfirst.types import Failure, Scope
from localfirst.types import FailureClass as F

# A wait of more than this that comes with a 429 is a quota, not a rate (gemini-cli stops
# retrying there: packages/core/src/utils/googleQuotaErrors.ts).
LONG_WAIT_S = 86400.0
# A daily quota that asks for a wait shorter than this is not to be believed.
SHORT_WAIT_S = 300.0
MESSAGE_CHARACTERS = 300

TIMEOUTS = frozenset({
    Breakage.CONNECT_TIMEOUT, Breakage.WRITE_TIMEOUT, Breakage.FIRST_BYTE_TIMEOUT,
    Breakage.FIRST_TOKEN_TIMEOUT, Breakage.STALL_TIMEOUT, Breakage.TOTAL_TIMEOUT,
})  # fmt: skip
BAD_ANSWERS = frozenset({
    Breakage.REDIRECT, Breakage.TOO_LARGE, Breakage.ENCODING, Breakage.PROTOCOL,
})  # fmt: skip

EXPECTED = (UpstreamError, LocalFirstError, OSError, TimeoutError)
"""What a backend may raise; anything else is a fault of ours, and is logged as such."""

DOWNLOAD_CODES = {
    "registry-dns": F.NETWORK,
    "registry-unreachable": F.NETWORK,
    "registry-proxy": F.NETWORK,
    "registry-tls": F.NETWORK,
    "pull-stalled": F.TIMEOUT,
    "registry-unauthorized": F.AUTH,
    "registry-rate-limited": F.RATE_LIMIT,
    "model-not-in-registry": F.MODEL_NOT_FOUND,
}
"""What a download's own errors are in the words of a trail."""

SCOPES = {
    F.RATE_LIMIT: Scope.KEY_MODEL,
    F.QUOTA: Scope.KEY,
    F.AUTH: Scope.KEY,
    F.TIMEOUT: Scope.PROVIDER,
    F.NETWORK: Scope.PROVIDER,
    F.UNAVAILABLE: Scope.PROVIDER,
    F.MODEL_NOT_FOUND: Scope.MODEL,
    F.CONTEXT_LENGTH: Scope.REQUEST,
    F.CONTENT_FILTER: Scope.REQUEST,
    F.INVALID_REQUEST: Scope.REQUEST,
    F.INVALID_RESPONSE: Scope.MODEL,
    F.CONFIG: Scope.PROVIDER,
    F.UNKNOWN: Scope.PROVIDER,
}


def failure(provider: str, error: BaseException, *, model: str, now_unix: float) -> Failure:
    """
    Classify what one attempt raised.

    Args:
        provider: the provider's id; "local" marks this machine's own engine.
        error: an `UpstreamError`, or what slipped past a backend (timeouts, `OSError`).
        model: the model that was asked, to recognise when a message speaks of it.
        now_unix: for resets that are points in time.

    Returns:
        a `Failure`; its message is redacted and at most 300 characters long.
    """
    if isinstance(error, UpstreamRefused):
        return _refused(provider, error, model, now_unix)
    if isinstance(error, UpstreamBroken):
        return _broken(error)
    if isinstance(error, UpstreamNonsense):
        return _plain(F.INVALID_RESPONSE, str(error) or "the answer was empty or malformed")
    if isinstance(error, LocalFirstError):
        return _ours(error)
    if isinstance(error, TimeoutError):
        return _plain(F.TIMEOUT, "no answer in time")
    if isinstance(error, OSError):
        return _plain(F.NETWORK, error.strerror or type(error).__name__)
    return _plain(F.UNKNOWN, type(error).__name__)


def _plain(cls: F, message: str) -> Failure:
    return Failure(cls=cls, scope=SCOPES[cls], message=redact(message))


def _ours(error: LocalFirstError) -> Failure:
    """What our own rooms refuse: an engine that will not start, a download that failed."""
    if isinstance(error, PrivacyRefused):
        return Failure(cls=F.CONFIG, scope=Scope.REQUEST, message=redact(error.message))
    if isinstance(error, InsufficientResources):
        return Failure(cls=F.CONFIG, scope=Scope.MODEL, message=redact(error.message))
    scope = Scope.PROVIDER if isinstance(error, EngineUnavailable) else Scope.MODEL
    cls = DOWNLOAD_CODES.get(error.code, F.UNAVAILABLE)
    return Failure(cls=cls, scope=scope, message=redact(error.message))


def is_capability(failure: Failure) -> bool:
    """Whether the model, not the request, is at fault: another one may do what was asked."""
    return failure.cls is F.INVALID_REQUEST and bool(words.CAPABILITY.search(failure.message))


def _broken(error: UpstreamBroken) -> Failure:
    if error.breakage in TIMEOUTS:
        cls = F.TIMEOUT
    elif error.breakage in BAD_ANSWERS:
        cls = F.INVALID_RESPONSE
    elif error.breakage is Breakage.ENGINE_DIED:
        cls = F.UNAVAILABLE
    else:
        cls = F.NETWORK
    message = redact(str(error).replace("_", " ", 1))
    return Failure(cls=cls, scope=SCOPES[cls], message=message, breakage=error.breakage)


def _refused(provider: str, error: UpstreamRefused, model: str, now_unix: float) -> Failure:
    complaint = classify_body.read(error.body)
    headers = {name.lower(): value for name, value in error.headers}
    status = complaint.status or error.status
    wait_s = _wait(complaint, headers, now_unix, limited=status == 429)
    cls = _verdict(provider, status, complaint, wait_s)
    if wait_s is not None and wait_s > classify_wait.ABSURD_S:
        wait_s = None
    return Failure(
        cls=cls,
        scope=_scope(cls, complaint, model),
        message=redact(complaint.message or f"HTTP {error.status} without a body"),
        status=error.status,
        retry_after_s=wait_s,
        retry_is_fact=wait_s is not None and _believable(cls, complaint, wait_s),
        field=complaint.field if cls is F.INVALID_REQUEST else "",
    )


def _wait(
    complaint: Complaint, headers: dict[str, str], now_unix: float, *, limited: bool
) -> float | None:
    """Seconds to stay away, as far as anybody said so."""
    wait_s = classify_wait.in_headers(headers, now_unix, limited=limited)
    if wait_s is None:
        wait_s = classify_wait.in_headers(complaint.headers, now_unix, limited=limited)
    if wait_s is None:
        wait_s = classify_wait.reset(complaint.retry, now_unix)
    if wait_s is None:
        wait_s = classify_wait.in_text(complaint.text, now_unix)
    return wait_s


def _believable(cls: F, complaint: Complaint, wait_s: float) -> bool:
    """A quota of zero never recovers, and a daily one not in seconds, whatever is stated."""
    if cls is not F.QUOTA:
        return True
    return not words.QUOTA_ZERO.search(complaint.text) and wait_s >= SHORT_WAIT_S


def _verdict(provider: str, status: int, complaint: Complaint, wait_s: float | None) -> F:
    """The ladder. Each question is a function below and says yes with a class."""
    named = words.VERDICTS.get(complaint.availability) or words.VERDICTS.get(complaint.error_type)
    if named not in (None, F.INVALID_REQUEST, F.RATE_LIMIT):
        return named
    return (
        _money(status, complaint, wait_s)
        or _content(complaint)
        or _misbehaved(complaint)
        or _access(provider, status, complaint)
        or _length(status, complaint)
        or _model(status, complaint)
        or _credentials(status, complaint)
        or named
        or _strain(status, complaint)
        or _by_status(status, complaint)
    )


def _money(status: int, complaint: Complaint, wait_s: float | None) -> F | None:
    """Quota texts and codes beat a rate-limit status; a tokens-per-day bucket is a rate."""
    if status == 402 or complaint.codes & words.QUOTA_CODES:
        return F.QUOTA
    if words.BALANCE.search(complaint.text):
        return F.QUOTA
    if status >= 500:
        return None
    if words.QUOTA.search(complaint.text) or words.SUSPENDED_BILLING.search(complaint.text):
        return F.QUOTA
    per_day = any(words.QUOTA_PER_DAY.search(code) for code in complaint.codes)
    limited = status in {429, 403}
    if limited and (per_day or words.QUOTA_ZERO.search(complaint.text)):
        return F.QUOTA
    return F.QUOTA if status == 429 and wait_s is not None and wait_s > LONG_WAIT_S else None


def _content(complaint: Complaint) -> F | None:
    flagged = "invalid_prompt" in complaint.codes and words.FLAGGED.search(complaint.text)
    if flagged or complaint.codes & words.FILTER_CODES or words.FILTER.search(complaint.text):
        return F.CONTENT_FILTER
    return None


def _misbehaved(complaint: Complaint) -> F | None:
    """The request was fine; the model did not do what it was asked."""
    if complaint.codes & words.RESPONSE_CODES or words.RESPONSE.search(complaint.text):
        return F.INVALID_RESPONSE
    return None


def _access(provider: str, status: int, complaint: Complaint) -> F | None:
    # Ollama answers a refused Host or Origin with 403 and nothing else (server/routes.go).
    if status == 403 and complaint.empty and provider in {"local", "ollama"}:
        return F.CONFIG
    if complaint.codes & words.CONFIG_CODES or words.CONFIG.search(complaint.text):
        return F.CONFIG
    return None


def _length(status: int, complaint: Complaint) -> F | None:
    if status >= 500 and not complaint.codes & words.CONTEXT_CODES:
        return None
    if complaint.field == "user":
        return None
    if status == 413 or words.TOO_LARGE.search(complaint.text):
        return F.CONTEXT_LENGTH
    if complaint.codes & words.CONTEXT_CODES:
        return F.CONTEXT_LENGTH
    if words.CONTEXT.search(complaint.text) and not words.NOT_CONTEXT.search(complaint.text):
        return F.CONTEXT_LENGTH if status != 429 else None
    return None


def _model(status: int, complaint: Complaint) -> F | None:
    if complaint.codes & words.MODEL_CODES:
        return F.MODEL_NOT_FOUND
    if status >= 500 or status == 429:
        return None
    return F.MODEL_NOT_FOUND if words.MODEL.search(complaint.text) else None


def _credentials(status: int, complaint: Complaint) -> F | None:
    if status == 401 or complaint.codes & words.AUTH_CODES:
        return F.AUTH
    if 400 <= status < 500 and status != 429 and words.AUTH.search(complaint.text):
        return F.AUTH
    return None


def _strain(status: int, complaint: Complaint) -> F | None:
    """Timeouts and overload, whatever status they came under."""
    if status in words.TIMEOUT_STATUSES or words.TIMEOUT.search(complaint.text):
        return F.TIMEOUT
    if words.DEGRADED.search(complaint.text) or complaint.codes & words.CAPACITY_CODES:
        return F.UNAVAILABLE
    return F.UNAVAILABLE if words.CAPACITY.search(complaint.text) else None


def _by_status(status: int, complaint: Complaint) -> F:
    if status == 429 or (complaint.codes & words.RATE_CODES and status < 500):
        return F.RATE_LIMIT
    if status == 499:
        return F.NETWORK
    if status >= 500:
        return F.UNAVAILABLE
    if status in {404, 410}:
        return F.MODEL_NOT_FOUND
    if status == 407:
        return F.CONFIG
    if status == 403:
        # A page instead of a body is somebody's guard in between, not the cloud's own word.
        return F.UNAVAILABLE if complaint.html else F.AUTH
    if complaint.html:
        return F.INVALID_RESPONSE if status < 400 else F.UNAVAILABLE
    if 400 <= status < 500:
        return F.INVALID_REQUEST
    return F.RATE_LIMIT if words.RATE.search(complaint.text) else F.UNKNOWN


def _scope(cls: F, complaint: Complaint, model: str) -> Scope:
    """Narrower than the class's own where the complaint names a model."""
    if cls is F.QUOTA and (words.QUOTA_ZERO.search(complaint.text) or _per_model(complaint)):
        return Scope.KEY_MODEL
    if cls is F.UNAVAILABLE and _names_model(complaint, model):
        return Scope.MODEL
    if cls is F.CONFIG and "terms" in complaint.text:
        return Scope.MODEL
    return SCOPES[cls]


def _per_model(complaint: Complaint) -> bool:
    return any("permodel" in code for code in complaint.codes)


def _names_model(complaint: Complaint, model: str) -> bool:
    if "model_capacity_exhausted" in complaint.codes or complaint.availability:
        return True
    return bool(model) and model.lower() in complaint.text.lower()


# --- what may be shown -------------------------------------------------------------------

# Shapes of credentials that clouds echo: OpenAI-like, Google, Hugging Face, GitHub, Bearer,
# JWTs, and account ids that are nobody else's business.
_SECRETS = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|nvapi|hf|fw|csk|tgp_v1|pplx|r8|ghp|gho|github_pat|AIza)"
    r"[-_A-Za-z0-9*.]{8,}"
    r"|AIza[-_A-Za-z0-9.]{4,}"
    r"|(?i:bearer)\s+[-._~+/A-Za-z0-9]{8,}=*"
    r"|\beyJ[-_A-Za-z0-9]{10,}(?:\.[-_A-Za-z0-9]+)*"
    r"|(?i:(?:api[-_ ]?key|token|secret|password|authorization)[\"']?\s*[:=]\s*[\"']?)"
    r"[-._~+/A-Za-z0-9]{8,}"
    r"|\b(?:org|proj|user|acct)[-_][A-Za-z0-9]{8,}"
    r"|(?<=provided: )[^\s.]*[*]{2,}[^\s.]*"
)
_URL_SECRETS = re.compile(r"([?&][\w-]*(?:key|token|sig|signature|secret)[\w-]*=)[^&\s\"']+", re.I)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def redact(message: str) -> str:
    """One line for people: without credentials and control characters, at most 300 long."""
    # Cut generously first, so that a hostile body costs nothing; then again after hiding.
    text = _CONTROLS.sub(" ", message[: MESSAGE_CHARACTERS * 8]).strip()
    text = _URL_SECRETS.sub(r"\1…", _SECRETS.sub("…", text))
    text = re.sub(r"\s{2,}", " ", text)
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 1] + "…"
