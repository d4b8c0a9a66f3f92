"""Requests made from the OpenAPI document, right and wrong: every answer is a documented one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localfirst.gateway.openapi import document
from localfirst.gateway.routes import ROUTES
from tests.fakes.gateway_host import Answer, hosted, run
from tests.fakes.scripted_runtime import ScriptedRuntime

PATHS: dict[str, dict[str, Any]] = json.loads(document(ROUTES))["paths"]
POSTS = sorted(path for path, item in PATHS.items() if "post" in item)
BATCH = 12

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "developer", "nobody"])
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": st.text() | values}), min_size=1, max_size=3
)


def matching(schema: dict[str, Any], name: str) -> st.SearchStrategy[Any]:
    """Values that the document's schema allows for a field."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = {
        "string": st.text() | st.sampled_from(["auto", "best", "no/such", "llama3.2:3b"]),
        "boolean": st.booleans(),
        "integer": st.integers(schema.get("minimum", -(2**40)), 2**40),
        "array": messages,
    }
    return kinds.get(schema.get("type", ""), values)


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """A body by the document, with a field or two spoilt, or added, or bytes that are none."""
    content = PATHS[path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    made: dict[str, Any] = {
        name: draw(matching(one, name)) for name, one in schema["properties"].items()
    }
    for name in draw(st.lists(st.sampled_from([*made, "tools", "options", "stop", "n"]))):
        made[name] = draw(values)
    encoded = json.dumps(made).encode()
    return encoded[: draw(st.integers(0, len(encoded)))] if draw(st.booleans()) else encoded


def ask(path: str, sent: list[bytes]) -> list[Answer]:
    async def main() -> list[Answer]:
        async with hosted(ScriptedRuntime()) as host:
            return [await host.ask("POST", path.replace("{name}", "auto"), one) for one in sent]

    return run(main())


@pytest.mark.parametrize("path", POSTS)
def test_no_body_makes_an_answer_that_is_not_documented(path: str) -> None:
    named = PATHS[path]["post"]["responses"]

    @settings(
        max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(bodies(path), min_size=4, max_size=8))
    def check(sent: list[bytes]) -> None:
        for body, answer in zip(sent, ask(path, sent), strict=True):
            assert str(answer.status) in named, (body, answer)
            assert answer.status < 500 and answer.complete, (body, answer)

    check()
