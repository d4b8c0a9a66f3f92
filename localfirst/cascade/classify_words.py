"""
The words by which clouds say what went wrong, as data.

Each table is asked in the order of `classify`'s ladder. Lower-case codes are compared
whole; patterns are searched in every sentence of the body. Wordings come from the clouds'
own error references and from error bodies quoted in public issue threads.
"""

from __future__ import annotations

import re

from localfirst.types import FailureClass as F


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile(
        "|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE
    )


# OpenRouter's own verdicts (openrouter.ai/docs/errors): authoritative when present.
VERDICTS: dict[str, F] = {
    "context_length_exceeded": F.CONTEXT_LENGTH,
    "string_too_long": F.CONTEXT_LENGTH,
    "authentication": F.AUTH,
    "payment_required": F.QUOTA,
    "token_limit_exceeded": F.QUOTA,
    "capacity_exhausted": F.UNAVAILABLE,
    "provider_overloaded": F.UNAVAILABLE,
    "provider_unavailable": F.UNAVAILABLE,
    "server": F.UNAVAILABLE,
    "unmapped": F.UNAVAILABLE,
    "timeout": F.TIMEOUT,
    "content_policy_violation": F.CONTENT_FILTER,
    "refusal": F.CONTENT_FILTER,
    "not_found": F.MODEL_NOT_FOUND,
    "model_not_found": F.MODEL_NOT_FOUND,
    "model_deprecated": F.MODEL_NOT_FOUND,
    "no_endpoints": F.MODEL_NOT_FOUND,
    "free_variant_ended": F.MODEL_NOT_FOUND,
    "model_unavailable_upstream": F.MODEL_NOT_FOUND,
    "privacy_restricted": F.CONFIG,
    "constraint_filtered": F.CONFIG,
    "region_restricted": F.CONFIG,
    "rate_limit_exceeded": F.RATE_LIMIT,
    "invalid_request": F.INVALID_REQUEST,
    "invalid_prompt": F.INVALID_REQUEST,
    "unprocessable": F.INVALID_REQUEST,
}

QUOTA_CODES = frozenset({
    "insufficient_quota", "insufficient_credits", "insufficient_balance", "billing_error",
    "credit_balance_exhausted", "organization_usage_limit_exceeded", "payment_required",
    "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
    "enforced_spend_limit_reached", "payment_method_required", "billing_hard_limit_reached",
    "billing_not_active", "exceeded_current_quota_error", "access_terminated",
    "daily_limit_exceeded", "monthly_limit_exceeded", "quota_exceeded_error",
})  # fmt: skip
# The bare word "billing" is no sign: rate limits advertise billing pages too.
QUOTA = _any(
    r"credit balance is (?:too low|insufficient)",
    r"insufficient (?:account )?(?:balance|credits?|funds)",
    r"doesn'?t have any credits",
    r"out of credits",
    r"credits? (?:has|have) (?:been )?(?:exhausted|depleted|expired|run out)",
    r"key limit exceeded",
    r"more credits are required",
    r"requires more credits",
    r"credits? (?:are|is) (?:required|depleted|exhausted)",
    r"(?:usage credits|extra usage) (?:are|is) required",
    r"no (?:remaining )?credits",
    r"used up your daily",
    r"daily (?:free |request |token |usage )?(?:allocation|quota|limit)",
    r"free-models-per-day",
    r"monthly (?:included credits|limit|quota|spend)",
    r"reached your (?:\w+ )?(?:api |session |hourly |weekly |daily |monthly )?usage limits?",
    r"specified api usage limits",
    r"payment method is required",
    r"spend(?:ing)? limit",
    r"per day per user",
    r"requests? per day",
    r"billing hard limit",
    r"account (?:is )?in arrears",
    r"create a key with a higher (?:monthly )?limit",
    r"(?:quota|trial) (?:has )?(?:been )?expired",
)
# Said even under a 500 by resellers whose own account ran dry.
BALANCE = _any(r"insufficient (?:account )?(?:balance|credits?|funds)")
# A limit of zero is a model outside the tier: waiting never helps (Gemini).
QUOTA_ZERO = re.compile(r"\blimit: 0\b(?!\.)")
QUOTA_PER_DAY = re.compile(r"perday", re.IGNORECASE)
# 412 at Fireworks, 403 elsewhere.
SUSPENDED_BILLING = _any(r"suspended.{0,80}(?:billing|spend|payment|invoice)", r"unpaid")

FILTER_CODES = frozenset({
    "content_filter", "responsibleaipolicyviolation", "content_policy_violation",
    "content_filtered", "moderation_blocked", "safety_error", "data_inspection_failed",
    "prohibited_content", "datainspectionfailed",
})  # fmt: skip
FILTER = _any(
    r"content exists risk",
    r"content (?:was|has been|is) (?:filtered|blocked|flagged)",
    r"flagged as potentially violating",
    r"flagged (?:by|for) (?:our )?(?:moderation|safety|content)",
    r"limited access to this content for safety",
    r"violat\w+ (?:our |the )?(?:usage|content|safety) polic",
    r"content management policy",
    r"request blocked: ",
    r"requires moderation",
    r"blocked by (?:our )?(?:safety|content|moderation)",
    r"prompt injection patterns",
    r"rejected (?:as a result of|by|due to) our (?:safety|moderation|content)",
    r"blocked due to safety",
    r"PROHIBITED_CONTENT",
)
FLAGGED = _any(r"flagged", r"safety", r"polic(?:y|ies)", r"moderation")

CONTEXT_CODES = frozenset({
    "context_length_exceeded", "tokens_limit_reached", "request_too_large", "string_too_long",
    "context_window_exceeded", "prompt_too_long", "input_too_long", "max_context_length_exceeded",
    "model_context_window_exceeded", "exceed_context_size_error",
})  # fmt: skip
CONTEXT = _any(
    r"^(?:the )?(?:input|prompt|request) is too long\b",
    r"prompt is (?:too long|longer than)",
    r"input (?:length|is too long)(?: and `max_tokens`)?.{0,20}(?:exceed|too long)",
    r"exceeds? (?:the |this )?(?:model'?s? )?(?:maximum )?context (?:window|length|limit)",
    r"input token count.{0,40}exceeds",
    r"maximum prompt length is \d",
    r"reduce (?:the|your) (?:length of (?:the|your) )?"
    r"(?:messages?|prompt|input|completion)(?: size)?\b.{0,40}(?:completion|try again|$)",
    r"maximum context length (?:is|of) \d",
    r"exceeds the limit of \d+ ?(?:tokens|$)",
    r"exceeds the available context size",
    r"(?:greater|longer|more) than the (?:model'?s? )?(?:maximum )?context (?:length|window)",
    r"context window exceeds",
    r"exceeded (?:the )?model'?s? token limit",
    r"too large for model with \d+",
    r"`?inputs`? tokens \+ `?max_new_tokens`?",
    r"context[_ ]length[_ ]exceeded",
    r"prompt exceeds max length",
    r"exceed context limit",
    r"input is too long for requested model",
    r"too many (?:input )?tokens.{0,40}(?:context|maximum)",
    r"context size has been exceeded",
    r"request too large for (?:model|gpt|claude|o\d)",
    r"request body too large for .{1,80}max size: \d+ tokens",
)
# One request bigger than the whole bucket: no waiting makes it fit (OpenAI 429, Groq 413).
TOO_LARGE = _any(r"request too large for\b", r"request is too large")
# Money and per-minute buckets that talk of tokens.
NOT_CONTEXT = _any(
    r"per minute limit exceeded",
    r"higher (?:monthly )?limit",
    r"rate limit (?:reached|for your organization)",
    r"exceed your account'?s rate limit",
)

MODEL_CODES = frozenset({
    "model_not_found", "model_decommissioned", "unknown_model", "deploymentnotfound",
    "model_not_available", "dedicated_endpoint_not_running", "model_deprecated", "modelerror",
    "model_terms_required_missing", "model_not_supported", "invalid_model", "no_such_model",
    "unsupported_model", "model_not_exist",
})  # fmt: skip
MODEL = _any(
    r"^model: \S+$",
    r"does not exist or you do not have access",
    r"decommissioned",
    r"has been deprecated",
    r"end of life",
    r"no endpoints found for",
    r"is not a valid model",
    r"non-serverless model",
    r"is not supported by any provider",
    r"requires a subscription",
    r"was removed on",
    r"model\W{1,3}[^\n]{1,120}?\W{0,3}(?:is |was )?"
    r"(?:not found|does not exist|is not available|not exist)\b",
    r"model name is invalid",
    r"(?:unknown|invalid|unsupported|no such) model\b",
    r"invalid model name",
    r"model not (?:found|exist)",
    r"requested model .{1,160}is not available",
    r"is no longer available",
    r"models/\S+ is not found",
    r"function '[0-9a-f-]{8,}': not found",
    r"try pulling it first",
    r"the dedicated endpoint for .{1,120} is not running",
    r"not found for account",
)

AUTH_CODES = frozenset({
    "invalid_api_key", "api_key_invalid", "authentication_error", "consumer_suspended",
    "unauthenticated", "invalid_authentication", "incorrect_api_key", "account_deactivated",
    "unauthorized", "authentication_fails", "api_key_expired", "key_expired", "token_expired",
    "no_api_key", "missing_api_key", "permission_denied_api_key", "api_key_service_blocked",
})  # fmt: skip
AUTH = _any(
    r"(?:incorrect|invalid|expired|missing|bad|wrong|revoked|unknown|leaked|disabled) "
    r"(?:x-)?api[ -]?key",
    r"api key (?:is )?(?:not valid|invalid|not found|expired|was reported|has been|provided is)",
    r"authentication (?:fails|failed|required)",
    r"no (?:cookie )?auth credentials",
    r"reported as leaked",
    r"has been suspended",
    r"service unavailable for account",
    r"invalid (?:bearer )?token\b",
    r"account (?:is|has been) (?:deactivated|disabled|suspended|blocked)",
    r"invalid subscription key",
    r"invalid authorization header",
    r"you must (?:provide|be logged)",
    r"user not found",
)

CONFIG = _any(
    r"location is not supported",
    r"region.{0,40}not supported",
    r"not available in your (?:region|country)",
    r"country, region,? or territory not supported",
    r"unsupported_country",
    r"data policy",
    r"guardrail restrictions",
    r"has not agreed to",
    r"must (?:accept|agree to) .{0,40}terms",
    r"terms (?:have )?not (?:been )?accepted",
    r"has not been used in project .{1,80} before or it is disabled",
    r"zero data retention",
)
CONFIG_CODES = frozenset({"unsupported_country_region_territory", "service_disabled"})

RATE_CODES = frozenset({
    "rate_limit_exceeded", "rate_limit_error", "rate_limited", "too_many_requests",
    "too_many_requests_error", "request_quota_exceeded", "token_quota_exceeded",
    "requests_limit_reached", "throttled", "throttling", "ratelimitexceeded",
})  # fmt: skip
RATE = _any(
    r"rate[ -]limit(?:ed|s)?\b",
    r"too many requests",
    r"queries per minute",
    r"requests per (?:minute|second)",
    r"slow down",
    r"tokens per min",
)

CAPACITY_CODES = frozenset({
    "overloaded_error", "overloaded", "server_is_overloaded", "model_capacity_exhausted",
    "service_unavailable_error", "engine_overloaded", "server_error", "service_unavailable",
    "engine_overloaded_error", "service_tier_capacity_exceeded", "3505",
})  # fmt: skip
CAPACITY = _any(
    r"error was encountered while running the model",
    r"model (?:is )?(?:currently |still )?loading",
    r"tier capacity exceeded",
    r"no more data centers",
    r"at capacity",
    r"no capacity available",
    r"resourceexhausted: worker",
    r"server busy",
    r"maximum pending requests",
    r"overloaded",
    r"unexpected eof",
    r"high demand",
    r"temporarily unavailable",
    r"runner has unexpectedly stopped",
    r"try again later, as (?:the )?server",
    r"insufficient_system_resource",
    r"no (?:healthy|available) (?:upstream|workers|server)",
)
# NVIDIA's word for a sick function; in small letters it is part of other complaints.
DEGRADED = re.compile(r"\bDEGRADED\b")

TIMEOUT = _any(
    r"deadline[ _](?:expired|exceeded)",
    r"(?:request|gateway|upstream|origin|operation)[ -]time(?:d )?-?out",
    r"timed out",
    r"error code: 524",
)
TIMEOUT_STATUSES = frozenset({408, 504, 522, 524})

RESPONSE_CODES = frozenset({"tool_use_failed", "json_validate_failed", "output_parse_failed"})
RESPONSE = _any(
    r"failed to generate json",
    r"failed to call a function",
    r"did not call a tool",
    r"tool call validation failed",
    r"model (?:produced|generated|returned) (?:an? )?(?:invalid|malformed|empty)",
    r"empty (?:response|completion|content)",
    # llama.cpp, of an answer that its parser of the model's template does not read, and of a
    # template that no grammar goes with (common/chat.cpp, common/sampling.cpp).
    r"output that does not match the expected",
    r"failed to initialize samplers",
)
CAPABILITY = _any(
    r"(?:does|do) not support (?:the )?(?:use of )?(?:tools?|thinking|reasoning|images?|vision|"
    r"insert|chat|generate|completion|audio|files?|documents?|pdfs?|multi-?modal|streaming|system|"
    r"developer|functions?|json[- _]?(?:mode|schema|object)|structured[- _]outputs?|"
    r"response[- _]format|parallel)",
    r"response_format.{0,60}(?:not supported|unsupported|unavailable)",
    r"image input is not supported",
    r"(?:tool|function)s? (?:use|calls?|calling) (?:is|are) not (?:supported|available|enabled)",
    r"^this backend does not support ",
    r"(?:tools|images?|vision) (?:are|is) not supported by this model",
)
