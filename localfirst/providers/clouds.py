"""
The clouds: one entry each, plain data.

A new OpenAI-compatible cloud is one more entry here and its key's variable in
`config.table`. Models, limits and free tiers are as of each entry's `dated`; sources are
each provider's own pages (`docs`). What a provider refuses or wants renamed is its quirks:
whoever adds one has seen the 400.
"""

from __future__ import annotations

import msgspec

from localfirst.providers.spec import ModelTiers, ProviderSpec
from localfirst.types import Dialect
from localfirst.wire.quirks import NONE, Quirks

DATED = "2026-11-20"

TEXT = frozenset({"tools", "schema", "thinking"})
ALL = TEXT | {"vision"}

OPENAI_ONLY = frozenset(
    {
        "store", "metadata", "user", "service_tier", "prediction", "prompt_cache_key",
        "safety_identifier", "verbosity", "web_search_options", "audio", "modalities",
    }
)  # fmt: skip
"""Fields that only OpenAI itself understands; strict validators answer 400 or 422 to them."""

SAMPLERS = frozenset({"top_k", "min_p", "repetition_penalty"})
"""Samplers of local engines that OpenAI's own API does not have."""

LOGPROBS = frozenset({"logprobs", "top_logprobs", "logit_bias"})
THOUGHTS = frozenset({"reasoning", "reasoning_content", "reasoning_details"})
SAMPLING = frozenset({"temperature", "top_p"})
PENALTIES = frozenset({"presence_penalty", "frequency_penalty"})

PLAIN = Quirks(drop=OPENAI_ONLY)

_GROQ = ProviderSpec(
    id="groq",
    title="Groq",
    base_url="https://api.groq.com/openai/v1",
    key_vars=("GROQ_API_KEY",),
    models=ModelTiers(fast=("openai/gpt-oss-20b",), best=("openai/gpt-oss-120b",)),
    dated=DATED,
    context_tokens=131_072,
    windows={"openai/gpt-oss-120b": 131_072, "qwen/qwen3.8-27b": 131_072},
    capabilities=TEXT,
    quirks=Quirks(
        drop=OPENAI_ONLY | SAMPLERS | LOGPROBS,
        caps={"n": 1},
        message_drop=THOUGHTS | {"name"},
    ),
    free_tier="30 requests a minute, 1 000 a day, 8 000 tokens a minute for each model",
    docs="https://console.groq.com/docs",
    notes="`max_tokens` counts against the minute's tokens before anything is generated",
)

_GEMINI = ProviderSpec(
    id="gemini",
    title="Google Gemini",
    base_url="https://generativelanguage.googleapis.com/v1beta/openai",
    key_vars=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"),
    models=ModelTiers(
        fast=("gemini-3.5-flash-lite", "gemini-3.1-flash-lite"),
        best=("gemini-3.8-flash", "gemini-3.5-flash"),
    ),
    dated=DATED,
    context_tokens=1_000_000,
    windows={"gemini-3.8-flash": 1_048_576, "gemini-3.1-flash-lite": 1_048_576},
    capabilities=ALL,
    quirks=Quirks(
        drop=OPENAI_ONLY | SAMPLERS | LOGPROBS | {"frequency_penalty", "seed", "reasoning"},
        message_drop=THOUGHTS,
        schema_drop=frozenset({"$schema", "additionalProperties", "const", "propertyNames"}),
        # Calls that another model made carry no signature, and without one Gemini 3 refuses
        # them; this value is Google's own word for such calls (docs: "Thought signatures").
        call_fields={
            "extra_content": {"google": {"thought_signature": "skip_thought_signature_validator"}}
        },
    ),
    embedding="gemini-embedding-001",
    free_tier="flash models, a few requests a minute and about 20 a day; prompts train Google",
    docs="https://ai.google.dev/gemini-api/docs/openai",
    notes="names unknown fields one by one; errors may come as a list of one",
)


def native_gemini(spec: ProviderSpec) -> ProviderSpec:
    """*spec* for Gemini's native dialect: its address, its list, and none of the other's quirks."""
    return msgspec.structs.replace(
        spec,
        base_url=spec.base_url.removesuffix("/openai"),
        dialect=Dialect.GEMINI,
        quirks=NONE,
        model_quirks=(),
        unless_thinking={},
        # Without a size the list has 50 models and a token for the next page.
        models_path="/models?pageSize=1000",
    )


_OPENROUTER = ProviderSpec(
    id="openrouter",
    title="OpenRouter",
    base_url="https://openrouter.ai/api/v1",
    key_vars=("OPENROUTER_API_KEY",),
    models=ModelTiers(
        fast=("openrouter/free", "google/gemma-4-26b-a4b-it:free"),
        best=("nvidia/nemotron-3-super-120b-a12b:free", "openai/gpt-oss-120b"),
    ),
    dated=DATED,
    context_tokens=200_000,
    windows={"openai/gpt-oss-120b": 131_072},
    headers=(("x-title", "localfirst"),),
    # The credit check reserves the model's maximum when a request names no limit.
    quirks=Quirks(defaults={"max_tokens": 8192}),
    unlisted=frozenset({"openrouter/free", "openrouter/auto"}),
    free_tier="`:free` models, 20 requests a minute and 50 a day; 1 000 a day after $10 once",
    docs="https://openrouter.ai/docs",
    notes="`GET /key` tells the credit left",
)

_TOGETHER = ProviderSpec(
    id="together",
    title="Together AI",
    base_url="https://api.together.xyz/v1",
    key_vars=("TOGETHER_API_KEY",),
    models=ModelTiers(fast=("openai/gpt-oss-20b",), best=("openai/gpt-oss-120b",)),
    dated=DATED,
    context_tokens=131_072,
    windows={"deepseek-ai/DeepSeek-V4-Flash-0731": 1_000_000},
    capabilities=TEXT,
    quirks=PLAIN,
    docs="https://docs.together.ai",
    notes="prompt and `max_tokens` together must fit the window",
)

_MISTRAL = ProviderSpec(
    id="mistral",
    title="Mistral",
    base_url="https://api.mistral.ai/v1",
    key_vars=("MISTRAL_API_KEY",),
    models=ModelTiers(
        fast=("mistral-small-2603", "ministral-8b-2512"),
        best=("mistral-medium-3-5", "mistral-large-2512"),
    ),
    dated=DATED,
    context_tokens=256_000,
    windows={"ministral-8b-2512": 262_144, "mistral-large-2512": 262_144},
    capabilities=frozenset({"tools", "vision", "schema"}),
    # Answers 422 to any key that it does not know.
    quirks=Quirks(
        drop=OPENAI_ONLY | SAMPLERS | LOGPROBS | {"reasoning_effort", "stream_options"},
        rename={"seed": "random_seed"},
        message_drop=THOUGHTS,
        tool_id_chars=9,
        stream_usage=False,
    ),
    embedding="mistral-embed",
    free_tier="a free mode of about one request a second",
    docs="https://docs.mistral.ai",
)

_REASONING = Quirks(drop=SAMPLING | PENALTIES | LOGPROBS)

_OPENAI = ProviderSpec(
    id="openai",
    title="OpenAI",
    base_url="https://api.openai.com/v1",
    key_vars=("OPENAI_API_KEY",),
    models=ModelTiers(fast=("gpt-6-luna", "gpt-4o-mini"), best=("gpt-6-sol",)),
    dated=DATED,
    context_tokens=1_050_000,
    windows={"gpt-4o-mini": 128_000, "gpt-6-sol": 1_050_000},
    capabilities=ALL,
    # "string too long. Expected a string with maximum length 40", of ids by other providers.
    quirks=Quirks(drop=SAMPLERS, max_tokens_field="max_completion_tokens", tool_id_most=40),
    model_quirks=(
        (r"(gpt-[5-9]|o\d)", _REASONING),
        # Tools beside reasoning are refused by some deployments of the family.
        (r"gpt-6", Quirks(with_tools={"reasoning_effort": "none"})),
    ),
    embedding="text-embedding-3-small",
    docs="https://platform.openai.com/docs",
)

_DEEPSEEK = ProviderSpec(
    id="deepseek",
    title="DeepSeek",
    base_url="https://api.deepseek.com",
    key_vars=("DEEPSEEK_API_KEY",),
    models=ModelTiers(fast=("deepseek-flash",), best=("deepseek-v4-pro",)),
    dated=DATED,
    context_tokens=1_000_000,
    windows={"deepseek-v4-pro": 1_000_000},
    capabilities=TEXT,
    quirks=Quirks(
        drop=OPENAI_ONLY | SAMPLERS | {"seed", "logit_bias", "parallel_tool_calls"},
        reasoning_field="reasoning_content",
        schema_drop=frozenset({"strict"}),
        json_schema=False,
    ),
    unless_thinking={"thinking": {"type": "disabled"}},
    docs="https://api-docs.deepseek.com",
    notes="thinks unless told not to; peak prices",
)

_ANTHROPIC = ProviderSpec(
    id="anthropic",
    title="Anthropic",
    base_url="https://api.anthropic.com/v1",
    dialect=Dialect.ANTHROPIC,
    key_vars=("ANTHROPIC_API_KEY",),
    models=ModelTiers(
        fast=("claude-haiku-5-5", "claude-haiku-4-5-20251001"), best=("claude-sonnet-5-5",)
    ),
    dated=DATED,
    context_tokens=1_000_000,
    windows={"claude-haiku-4-5-20251001": 200_000, "claude-sonnet-5-5": 1_000_000},
    capabilities=ALL,
    quirks=Quirks(signed_thinking=True),
    model_quirks=(
        (r"claude-(opus|sonnet|haiku)-[5-9]", Quirks(drop=SAMPLING | {"top_k"})),
        # Either temperature or top_p, never both.
        (r"claude-(opus|sonnet|haiku)-4-5", Quirks(drop=frozenset({"top_p"}))),
    ),
    docs="https://docs.anthropic.com/en/api",
)

_HUGGINGFACE = ProviderSpec(
    id="huggingface",
    title="Hugging Face",
    base_url="https://router.huggingface.co/v1",
    key_vars=("HF_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HUGGINGFACE_API_KEY"),
    models=ModelTiers(fast=("openai/gpt-oss-120b:cheapest",), best=("openai/gpt-oss-120b",)),
    dated=DATED,
    context_tokens=131_072,
    windows={"openai/gpt-oss-120b": 131_072},
    capabilities=TEXT,
    quirks=PLAIN,
    concurrency=3,
    free_tier="$0.10 a month",
    docs="https://huggingface.co/docs/inference-providers",
    notes="routes to other providers, whose errors pass through",
)

_CEREBRAS = ProviderSpec(
    id="cerebras",
    title="Cerebras",
    base_url="https://api.cerebras.ai/v1",
    key_vars=("CEREBRAS_API_KEY",),
    models=ModelTiers(fast=("gpt-oss-120b",), best=("gemma-4-31b",)),
    dated=DATED,
    context_tokens=65_536,
    windows={"gemma-4-31b": 65_536},
    capabilities=TEXT,
    # Tokens are reserved at admission, up to 16 000 when a request names no limit.
    quirks=Quirks(
        drop=OPENAI_ONLY | SAMPLERS | {"logit_bias"},
        defaults={"max_completion_tokens": 8192},
        max_tokens_field="max_completion_tokens",
    ),
    docs="https://inference-docs.cerebras.ai",
    notes="trial accounts have a window of 65 536 tokens, paid ones twice that",
)

_NVIDIA = ProviderSpec(
    id="nvidia",
    title="NVIDIA NIM",
    base_url="https://integrate.api.nvidia.com/v1",
    key_vars=("NVIDIA_API_KEY",),
    models=ModelTiers(fast=("openai/gpt-oss-120b",)),
    dated=DATED,
    context_tokens=128_000,
    capabilities=TEXT,
    # One tool call at a time; whether a schema is understood depends on the model.
    quirks=Quirks(drop=OPENAI_ONLY, with_tools={"parallel_tool_calls": False}, json_schema=False),
    first_token_s=180.0,
    free_tier="a trial of 40 requests a minute; prompts are logged",
    docs="https://docs.api.nvidia.com/nim",
)

_CLOUDFLARE = ProviderSpec(
    id="cloudflare",
    title="Cloudflare Workers AI",
    base_url="https://api.cloudflare.com/client/v4/accounts/{account}/ai/v1",
    key_vars=("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"),
    models=ModelTiers(fast=("@cf/openai/gpt-oss-20b",), best=("@cf/openai/gpt-oss-120b",)),
    dated=DATED,
    context_tokens=128_000,
    windows={"@cf/openai/gpt-oss-120b": 128_000},
    # The server's own default for generated tokens is a few hundred.
    quirks=Quirks(
        drop=OPENAI_ONLY | LOGPROBS | {"min_p", "reasoning_effort"},
        defaults={"max_tokens": 4096},
    ),
    models_path="",
    free_tier="10 000 neurons a day, until 00:00 UTC",
    docs="https://developers.cloudflare.com/workers-ai",
)

_XAI = ProviderSpec(
    id="xai",
    title="xAI",
    base_url="https://api.x.ai/v1",
    key_vars=("XAI_API_KEY",),
    models=ModelTiers(fast=("grok-4.3",), best=("grok-4.5",)),
    dated=DATED,
    context_tokens=1_000_000,
    windows={"grok-4.5": 500_000},
    capabilities=ALL,
    quirks=Quirks(drop=OPENAI_ONLY | SAMPLERS),
    model_quirks=((r"grok-[4-9]", Quirks(drop=PENALTIES)),),
    docs="https://docs.x.ai",
)

_FIREWORKS = ProviderSpec(
    id="fireworks",
    title="Fireworks",
    base_url="https://api.fireworks.ai/inference/v1",
    key_vars=("FIREWORKS_API_KEY",),
    models=ModelTiers(
        fast=("accounts/fireworks/models/gpt-oss-20b",),
        best=("accounts/fireworks/models/gpt-oss-120b",),
    ),
    dated=DATED,
    context_tokens=131_072,
    windows={"accounts/fireworks/models/gpt-oss-120b": 131_072},
    capabilities=TEXT,
    quirks=PLAIN,
    docs="https://docs.fireworks.ai",
)

_SAMBANOVA = ProviderSpec(
    id="sambanova",
    title="SambaNova",
    base_url="https://api.sambanova.ai/v1",
    key_vars=("SAMBANOVA_API_KEY",),
    models=ModelTiers(fast=("gpt-oss-120b",)),
    dated=DATED,
    context_tokens=131_072,
    capabilities=TEXT,
    quirks=PLAIN,
    docs="https://docs.sambanova.ai",
)

_OLLAMA_CLOUD = ProviderSpec(
    id="ollama-cloud",
    title="Ollama cloud",
    base_url="https://ollama.com/v1",
    key_vars=("OLLAMA_API_KEY",),
    models=ModelTiers(fast=("gpt-oss:20b",), best=("gpt-oss:120b",)),
    dated=DATED,
    context_tokens=131_072,
    capabilities=TEXT,
    quirks=Quirks(drop=OPENAI_ONLY | {"logit_bias"}),
    docs="https://docs.ollama.com/cloud",
    notes="pay as you go; the key is sent to ollama.com only",
)

CLOUDS: tuple[ProviderSpec, ...] = (
    _GROQ, _GEMINI, _OPENROUTER, _TOGETHER, _MISTRAL, _OPENAI, _DEEPSEEK, _ANTHROPIC,
    _HUGGINGFACE, _CEREBRAS, _NVIDIA, _CLOUDFLARE, _XAI, _FIREWORKS, _SAMBANOVA, _OLLAMA_CLOUD,
)  # fmt: skip
