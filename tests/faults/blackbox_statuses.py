"""Error statuses with the bodies that clouds send under them, and the class each must get."""

from __future__ import annotations

from typing import Any

from tests.faults.blackbox_table import Row, status


def _openai(
    message: str, kind: str = "invalid_request_error", code: Any = None, **more: Any
) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def _anthropic(kind: str, message: str) -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _google(status_word: str, code: int, message: str, *details: Any) -> Any:
    return [
        {"error": {"code": code, "message": message, "status": status_word, "details": [*details]}}
    ]


PAGE = "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"
LONG = "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."
NO_MODEL = "The model `m` does not exist or you do not have access to it."

BARE = [
    Row(f"bare-{code}", status(code, ""), cls=cls)
    for code, cls in {
        401: "auth", 402: "quota", 403: "auth", 404: "model_not_found", 408: "timeout",
        410: "model_not_found", 413: "context_length", 429: "rate_limit", 500: "unavailable",
        501: "unavailable", 502: "unavailable", 503: "unavailable", 504: "timeout",
        520: "unavailable", 522: "timeout", 524: "timeout", 529: "unavailable", 599: "unavailable",
    }.items()
]  # fmt: skip

PAGES = [
    Row(f"page-{code}", status(code, PAGE, **{"content-type": "text/html"}), cls=cls)
    for code, cls in {403: "unavailable", 429: "rate_limit", 500: "unavailable",
                      502: "unavailable", 503: "unavailable", 524: "timeout"}.items()
]  # fmt: skip

OWN_FAULT = [
    Row("bad-request", status(400, _openai("temperature must be at most 2")), "ends",
        "invalid_request", 400),
    Row("bad-request-anthropic", status(400, _anthropic("invalid_request_error",
        "messages.0: Input does not match the expected shape.")), "ends", "invalid_request", 400),
    Row("conflict", status(409, _openai("conflict")), "ends", "invalid_request", 409),
    Row("unprocessable", status(422, {"detail": [{"loc": ["body", "messages", 0, "content"],
        "msg": "value is not a valid string", "type": "type_error.str"}]}), "ends",
        "invalid_request", 422),
    Row("filtered", status(400, _openai("The content was filtered.", code="content_filter")),
        "ends", "content_filter", 400),
    Row("flagged", status(400, _openai("Invalid prompt: your prompt was flagged as potentially "
        "violating our usage policy.", code="invalid_prompt")), "ends", "content_filter", 400),
    Row("content-exists-risk", status(400, _openai("Content Exists Risk")), "ends",
        "content_filter", 400),
]  # fmt: skip

LIMITS = [
    Row("rate-limit-openai", status(429, _openai("Rate limit reached for gpt-4o on requests per "
        "min (RPM): Limit 3. Please try again in 20s.", "requests", "rate_limit_exceeded")),
        cls="rate_limit"),
    Row("rate-limit-anthropic", status(429, _anthropic("rate_limit_error",
        "This request would exceed your account's rate limit. Please try again later.")),
        cls="rate_limit"),
    Row("rate-limit-google", status(429, _google("RESOURCE_EXHAUSTED", 429,
        "You exceeded your current quota. Please retry in 44.09s.",
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "44s"})),
        cls="rate_limit"),
    Row("quota-openai", status(429, _openai("You exceeded your current quota, please check your "
        "plan and billing details.", "insufficient_quota", "insufficient_quota")), cls="quota"),
    Row("quota-anthropic", status(400, _anthropic("invalid_request_error", "Your credit balance "
        "is too low to access the Anthropic API.")), cls="quota"),
    Row("quota-daily-google", status(429, _google("RESOURCE_EXHAUSTED", 429, "Quota exceeded",
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
            {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]})), cls="quota"),
    Row("quota-daily-openrouter", status(429, _openai("Rate limit exceeded: free-models-per-day. "
        "Add 10 credits to unlock 1000 free model requests per day", code=429)), cls="quota"),
    Row("payment-huggingface", status(402, {"error": "You have exceeded your monthly included "
        "credits for Inference Providers."}), cls="quota"),
    Row("capacity-429", status(429, _openai("Service tier capacity exceeded for this model.",
        code="3505")), cls="unavailable"),
]  # fmt: skip

KEYS = [
    Row("invalid-key-openai", status(401, _openai("Incorrect API key provided: sk-abc***xyz.",
        code="invalid_api_key")), cls="auth"),
    Row("invalid-key-google", status(400, _google("INVALID_ARGUMENT", 400,
        "API key not valid. Please pass a valid API key.",
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"})),
        cls="auth"),
    Row("invalid-key-xai", status(400, {"code": "Client specified an invalid argument",
        "error": "Incorrect API key provided: na***ys."}), cls="auth"),
    Row("invalid-key-anthropic", status(401, _anthropic("authentication_error",
        "invalid x-api-key")), cls="auth"),
    Row("leaked-key", status(403, _openai("Your API key was reported as leaked.")), cls="auth"),
    Row("region", status(400, _google("FAILED_PRECONDITION", 400,
        "User location is not supported for the API use.")), cls="config"),
]  # fmt: skip

MODELS = [
    Row("no-model-404", status(404, _openai(NO_MODEL, code="model_not_found")),
        cls="model_not_found"),
    Row("no-model-400", status(400, _openai(NO_MODEL, code="model_not_found")),
        cls="model_not_found"),
    Row("no-model-anthropic", status(404, _anthropic("not_found_error", "model: m")),
        cls="model_not_found"),
    Row("decommissioned", status(400, _openai("The model `m` has been decommissioned and is no "
        "longer supported.", code="model_decommissioned")), cls="model_not_found"),
    Row("no-endpoints", status(404, _openai("No endpoints found for m.", code=404)),
        cls="model_not_found"),
    Row("gone-410", status(410, {"detail": "The model 'm' has reached its end of life"}),
        cls="model_not_found"),
    Row("context-openai", status(400, _openai(LONG, code="context_length_exceeded")),
        cls="context_length"),
    Row("context-anthropic", status(400, _anthropic("invalid_request_error",
        "prompt is too long: 213462 tokens > 200000 maximum")), cls="context_length"),
    Row("context-groq-413", status(413, _openai("Request too large for model `m` on tokens per "
        "minute (TPM): Limit 6000, Requested 9000", "tokens", "rate_limit_exceeded")),
        cls="context_length"),
    Row("json-failed-groq", status(400, _openai("Failed to generate JSON. Please adjust your "
        "prompt.", code="json_validate_failed", failed_generation="{")), cls="invalid_response"),
    Row("tools-unsupported", status(400, {"error": "m does not support tools"}),
        cls="invalid_request"),
]  # fmt: skip

TROUBLE = [
    Row("overloaded-anthropic", status(529, _anthropic("overloaded_error", "Overloaded")),
        cls="unavailable"),
    Row("overloaded-openai", status(503, _openai("Our servers are currently overloaded.",
        "service_unavailable_error", "server_is_overloaded")), cls="unavailable"),
    Row("degraded-nvidia", status(400, {"detail": "Function id 'x': DEGRADED function cannot be "
        "invoked"}), cls="unavailable"),
    Row("nested", status(500, {"error": {"message": "Error from provider: " +
        '{"error":{"code":429,"message":"Rate limit reached","type":"rate_limit"}}'}}),
        cls="rate_limit"),
    Row("truncated-body", status(500, '{"error": {"message": "int'), cls="unavailable"),
    Row("not-json", status(503, "upstream connect error or disconnect/reset before headers"),
        cls="unavailable"),
    Row("deep-json", status(500, '{"error":' * 500 + "1" + "}" * 500), cls="unavailable"),
    Row("huge-body", status(500, "x" * 2_000_000), cls="unavailable"),
]  # fmt: skip

ROWS = (*BARE, *PAGES, *OWN_FAULT, *LIMITS, *KEYS, *MODELS, *TROUBLE)
