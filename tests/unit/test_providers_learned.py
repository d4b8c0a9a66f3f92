"""What refusals teach, by the words that clouds and servers use for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localfirst.cascade import classify
from localfirst.errors import UpstreamRefused
from localfirst.providers.learned import Learned
from localfirst.types import FailureClass
from localfirst.wire.quirks import NONE

SENT = json.dumps(
    {
        "model": "m", "messages": [], "seed": 1, "top_k": 4, "logit_bias": {}, "min_p": 0.1,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
    }
).encode()  # fmt: skip


def refused(message: Any, status: int = 400, **more: Any) -> UpstreamRefused:
    error = {"message": message, "type": "invalid_request_error", **more}
    return UpstreamRefused(status, json.dumps({"error": error}).encode())


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("Unknown parameter: 'seed'.", "seed"),
        ('Invalid JSON payload received. Unknown name "seed": Cannot find field.', "seed"),
        ("property 'logit_bias' is unsupported", "logit_bias"),
        ("top_k: Extra inputs are not permitted", "top_k"),
        ("`top_k` is not supported with this model.", "top_k"),
        ("`top_k` is deprecated for this model.", "top_k"),
        ("'min_p' parameter is not supported", "min_p"),
        ("unexpected keyword argument 'min_p'", "min_p"),
        ("[{'type': 'extra_forbidden', 'loc': ('body', 'min_p'), 'msg': 'Extra inputs are not "
         "permitted', 'input': 0.1}]", "min_p"),
    ],
)  # fmt: skip
def test_a_field_is_found_in_every_wording(message: str, field: str) -> None:
    learned = Learned("groq")
    assert learned.from_refusal(refused(message), "m", SENT)
    assert learned.over(NONE, "m").drop == {field}


UNABLE = [
    "This model does not support response format `json_schema`. See supported models at x.",
    "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
    "This response_format type is unavailable now",
    "m does not support structured outputs",
]


@pytest.mark.parametrize("message", UNABLE)
def test_a_model_that_takes_no_schema_is_asked_in_words(message: str) -> None:
    learned = Learned("groq")
    assert learned.from_refusal(refused(message), "m", SENT)
    found = learned.over(NONE, "m")
    assert (found.json_schema, found.drop) == (False, frozenset())
    # Said twice, it teaches nothing new.
    assert not learned.from_refusal(refused(message), "m", SENT)


@pytest.mark.parametrize(
    "message",
    [
        *UNABLE,
        "This model does not support tools",
        "m does not support tool use",
        "This model does not support image input",
        "image input is not supported - hint: you may need to provide the mmproj",
        "Function calling is not enabled for models/m",
        "'m' does not support function calling",
        "This model does not support parallel tool calls",
        "The model does not support audio inputs",
    ],
)
def test_what_a_model_cannot_do_another_one_may(message: str) -> None:
    failure = classify.failure("groq", refused(message), model="m", now_unix=0.0)
    assert failure.cls is FailureClass.INVALID_REQUEST
    assert classify.is_capability(failure)


@pytest.mark.parametrize(
    "message",
    [
        "temperature must be at most 2",
        "Invalid 'messages': empty array.",
        "'seed' must be an integer",
        "Invalid type for 'tools[0].function.name': expected a string",
    ],
)
def test_a_wrong_value_is_the_callers_matter(message: str) -> None:
    assert not Learned("groq").from_refusal(refused(message), "m", SENT)
    failure = classify.failure("groq", refused(message), model="m", now_unix=0.0)
    assert not classify.is_capability(failure)


def test_a_refusal_that_teaches_nothing_new_is_no_reason_to_ask_again() -> None:
    """Asked again it would be the same request, for ever."""
    learned = Learned("groq")
    once = refused("Unknown parameter: 'seed'.")
    assert learned.from_refusal(once, "m", SENT)
    assert not learned.from_refusal(once, "m", SENT)
    # What another model refuses, or another field, is new.
    assert learned.from_refusal(once, "other", SENT)
    assert learned.from_refusal(refused("Unknown parameter: 'top_k'."), "m", SENT)
    assert learned.over(NONE, "m").drop == {"seed", "top_k"}
    assert learned.over(NONE, "unknown") is NONE


@pytest.mark.parametrize("status", [401, 403, 404, 413, 429, 500, 503])
def test_only_a_request_that_is_wrong_teaches(status: int) -> None:
    assert not Learned("groq").from_refusal(refused("Unknown parameter: 'seed'", status), "m", SENT)
    assert Learned("groq").from_refusal(refused("Unknown parameter: 'seed'", 422), "m", SENT)


@pytest.mark.parametrize("field", ["model", "messages", "stream", "response_format", "max_tokens"])
def test_what_the_caller_asked_for_is_never_left_out(field: str) -> None:
    learned = Learned("groq")
    sent = SENT.replace(b"{", b'{"stream": true, "max_tokens": 5, ', 1)
    learned.from_refusal(refused(f"Unknown parameter: '{field}'."), "m", sent)
    assert learned.over(NONE, "m").drop == frozenset()


def test_a_field_that_was_not_sent_is_somebody_elses() -> None:
    assert not Learned("groq").from_refusal(refused("Unknown parameter: 'tfs_z'."), "m", SENT)


def test_the_other_name_of_the_longest_answer_is_learnt() -> None:
    learned = Learned("groq")
    told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    assert learned.from_refusal(refused(told), "new", b'{"max_tokens": 5}')
    assert learned.over(NONE, "new").max_tokens_field == "max_completion_tokens"
    told = "Unknown parameter: 'max_completion_tokens'."
    assert learned.from_refusal(refused(told), "old", b'{"max_completion_tokens": 5}')
    assert learned.over(NONE, "old").rename == {"max_completion_tokens": "max_tokens"}


def test_a_part_of_a_message_is_left_out_of_the_messages_alone() -> None:
    learned = Learned("groq")
    body = {"detail": [{"loc": ["body", "messages", 1, "reasoning"], "type": "extra_forbidden",
                        "msg": "Extra inputs are not permitted"}]}  # fmt: skip
    error = UpstreamRefused(422, json.dumps(body).encode())
    assert learned.from_refusal(error, "m", b'{"messages": [{"reasoning": "hm"}]}')
    found = learned.over(NONE, "m")
    assert (found.message_drop, found.drop) == ({"reasoning"}, frozenset())
    body["detail"][0]["loc"] = ["body", "messages", 1, "content"]
    error = UpstreamRefused(422, json.dumps(body).encode())
    assert not learned.from_refusal(error, "m", b'{"messages": [{"content": "hi"}]}')


def test_every_field_of_a_validators_list_is_learnt_at_once() -> None:
    learned = Learned("groq")
    entry = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}
    body = {"detail": [entry | {"loc": ["body", name]} for name in ("seed", "top_k", "min_p")]}
    assert learned.from_refusal(UpstreamRefused(422, json.dumps(body).encode()), "m", SENT)
    assert learned.over(NONE, "m").drop == {"seed", "top_k", "min_p"}


def test_made_up_models_and_fields_fill_no_memory() -> None:
    learned = Learned("groq")
    once = refused("Unknown parameter: 'seed'.")
    taught = [learned.from_refusal(once, f"m{n}", SENT) for n in range(300)]
    assert sum(taught) == len(learned.by_model) == 256
    # Those that are known still learn.
    assert learned.from_refusal(refused("Unknown parameter: 'top_k'."), "m0", SENT)
    wild = json.dumps({f"f{n}": 1 for n in range(99)}).encode()
    for n in range(99):
        learned.from_refusal(refused(f"Unknown parameter: 'f{n}'."), "m1", wild)
    assert len(learned.over(NONE, "m1").drop) == 32


def test_thinking_that_a_model_refuses_without_naming_it_is_not_asked_for_again() -> None:
    learned = Learned("gemini")
    sent = b'{"generationConfig": {"thinkingConfig": {"thinkingBudget": 1}}}'
    told = refused("Thinking can't be disabled for this model.")
    assert not learned.from_refusal(told, "m", b'{"generationConfig": {}}')
    assert not learned.from_refusal(refused("Budget 5 is invalid."), "m", sent)
    assert learned.from_refusal(told, "m", sent)
    assert learned.over(NONE, "m").drop == {"thinkingConfig"}


def test_a_refusal_of_another_kind_teaches_nothing_whatever_it_names() -> None:
    told = refused("Invalid API key. Unknown parameter: 'seed'.", code="invalid_api_key")
    assert not Learned("groq").from_refusal(told, "m", SENT)


@pytest.mark.parametrize("where", [5, {}, {"0": "body"}, [], ["query", "seed"], "body", ["body"]])
def test_a_place_that_is_none_teaches_nothing(where: Any) -> None:
    body = {"detail": [{"loc": where, "msg": "Extra inputs are not permitted"}]}
    deep: Any = body
    for _ in range(50):
        deep = {"in": [deep]}
    for one in (body, deep):
        error = UpstreamRefused(422, json.dumps(one).encode())
        assert not Learned("groq").from_refusal(error, "m", SENT)


@pytest.mark.parametrize(
    "message", ["top_k must be at most 40", "Invalid value for 'top_k'", "top_k is too large"]
)
def test_a_value_out_of_range_stays_the_callers_mistake_although_its_field_is_named(
    message: str,
) -> None:
    """Left out, the caller would get an answer that was made otherwise than asked for."""
    assert not Learned("groq").from_refusal(refused(message, param="top_k"), "m", SENT)
    known = refused("Unknown parameter: 'top_k'.", param="top_k")
    assert Learned("groq").from_refusal(known, "m", SENT)


@pytest.mark.parametrize("status", [405, 409, 418])
def test_a_refusal_of_the_whole_request_teaches_nothing_of_its_fields(status: int) -> None:
    error = refused("Unknown parameter: 'top_k'.", status, param="top_k")
    assert not Learned("groq").from_refusal(error, "m", SENT)
