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
