"""
Counts that nobody can have counted, in every dialect: the answer is read, the count is not.

They go into prices, budgets, history and the usage that clients of other dialects are told.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from localfirst.events import Event, Finished, Relayed, Usage
from localfirst.providers.prices import price_of
from localfirst.wire.anthropic import events as anthropic
from localfirst.wire.gemini import events as gemini
from localfirst.wire.ollama import embeddings as ollama_embeddings
from localfirst.wire.ollama import events as ollama
from localfirst.wire.openai import embeddings as openai_embeddings
from localfirst.wire.openai import events as openai
from tests.wire.support import read_whole

Reader = Callable[[bytes], list[Event]]

ABSURD = [10**30, 10**330, 10**9, -1, -(10**30)]


def of_openai(count: int) -> Any:
    choice = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": count,
        "total_tokens": count,
        "prompt_tokens_details": {"cached_tokens": count, "cache_write_tokens": count},
        "completion_tokens_details": {"reasoning_tokens": count},
    }
    return {"choices": [choice], "usage": usage}


def of_anthropic(count: int) -> Any:
    usage = {
        "input_tokens": 3,
        "output_tokens": count,
        "cache_creation_input_tokens": count,
        "cache_read_input_tokens": count,
    }
    content = [{"type": "text", "text": "hi"}]
    return {"type": "message", "content": content, "stop_reason": "end_turn", "usage": usage}


def of_gemini(count: int) -> Any:
    candidate = {"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}
    usage = {
        "promptTokenCount": 3,
        "candidatesTokenCount": count,
        "thoughtsTokenCount": count,
        "toolUsePromptTokenCount": count,
        "cachedContentTokenCount": count,
    }
    return {"candidates": [candidate], "usageMetadata": usage}


def of_ollama(count: int) -> Any:
    message = {"role": "assistant", "content": "hi"}
    return {"message": message, "done": True, "prompt_eval_count": 3, "eval_count": count}


DIALECTS = [
    pytest.param(openai.read_reply, of_openai, id="openai"),
    pytest.param(anthropic.read_reply, of_anthropic, id="anthropic"),
    pytest.param(gemini.read_reply, of_gemini, id="gemini"),
    pytest.param(partial(read_whole, ollama), of_ollama, id="ollama"),
]


def usage_in(events: list[Event]) -> Usage | None:
    last = events[-1]
    assert isinstance(last, Finished | Relayed)
    return last.usage


@pytest.mark.parametrize("count", ABSURD, ids=["1e30", "1e330", "1e9", "-1", "-1e30"])
@pytest.mark.parametrize(("read", "said"), DIALECTS)
def test_an_absurd_count_of_tokens_is_none(
    read: Reader, said: Callable[[int], Any], count: int
) -> None:
    assert usage_in(read(json.dumps(said(count)).encode())) == Usage(prompt_tokens=3)


@pytest.mark.parametrize("count", ABSURD, ids=["1e30", "1e330", "1e9", "-1", "-1e30"])
def test_an_answer_that_is_relayed_with_an_absurd_count_costs_what_is_sure(count: int) -> None:
    body = json.dumps(of_openai(count)).encode()
    usage = usage_in(openai.read_reply(body, relay=True))
    price = price_of("groq", "openai/gpt-oss-120b")
    assert usage is not None and price is not None
    assert price.cost_usd(usage) == pytest.approx(3 * price.input / 1e6)


@pytest.mark.parametrize("count", [10**30, 10**9, -1], ids=["1e30", "1e9", "-1"])
def test_vectors_with_an_absurd_count_cost_what_is_sure(count: int) -> None:
    given = {"data": [{"embedding": [1.0], "index": 0}], "usage": {"prompt_tokens": count}}
    assert openai_embeddings.read(json.dumps(given).encode(), 1).prompt_tokens == 0
    given["usage"] = {"prompt_tokens": count, "total_tokens": 3}
    assert openai_embeddings.read(json.dumps(given).encode(), 1).prompt_tokens == 3
    said = {"embeddings": [[1.0]], "prompt_eval_count": count}
    assert ollama_embeddings.read(json.dumps(said).encode(), 1).prompt_tokens == 0


@pytest.mark.parametrize("took", [10**30, 2**63, -1])
def test_a_duration_that_no_clock_of_go_tells_is_none(took: int) -> None:
    body = json.dumps({**of_ollama(5), "eval_duration": took, "load_duration": 7}).encode()
    last = read_whole(ollama, body)[-1]
    assert isinstance(last, Finished)
    assert last.timings == {"load_duration": 7}
