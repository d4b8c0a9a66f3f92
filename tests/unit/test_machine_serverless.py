"""Guards when a last-resort download is held back: only where a model would be lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localfirst.machine import serverless

DATA = json.loads((Path(__file__).parent.parent / "data" / "serverless_vectors.json").read_text())
VECTORS = DATA["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_each_recorded_environment_gets_its_rule(vector: dict[str, object]) -> None:
    env = vector["env"]
    assert isinstance(env, dict)
    found = serverless.verdict(env, platform="linux")
    assert (found.rule, found.category) == (vector["rule"], vector["category"])


def test_the_table_is_whole() -> None:
    ids = [rule.id for rule in serverless.rules()]
    assert len(ids) == len(set(ids)) == 36
    ops = {
        condition.op for rule in serverless.rules() for group in rule.any_of for condition in group
    }
    assert ops <= {"set", "unset", "eq", "ne", "in", "startswith"}


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_serverless_never_pulls_and_its_reason_names_the_variable_and_the_way_out(
    vector: dict[str, object],
) -> None:
    env = vector["env"]
    assert isinstance(env, dict)
    found = serverless.verdict(env, platform="linux")
    if found.category == "serverless":
        assert found.skip_pull
    if found.skip_pull:
        assert any(name in found.reason for name in env)
        assert "LOCALFIRST_SERVERLESS=0" in found.reason


@pytest.mark.parametrize(
    ("environ", "skip"),
    [
        ({"CI": "true"}, True),
        ({"AWS_SAM_LOCAL": "true"}, True),
        ({"NETLIFY_DEV": "true"}, False),
        ({"DYNO": "web.1"}, True),
        ({"RAILWAY_PROJECT_ID": "p"}, True),
        ({"RAILWAY_PROJECT_ID": "p", "RAILWAY_VOLUME_MOUNT_PATH": "/data"}, False),
        ({"CODESPACES": "true"}, False),
        ({"COLAB_RELEASE_TAG": "r"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({}, False),
    ],
)
def test_other_categories_pull_only_where_the_model_would_stay(
    environ: dict[str, str], skip: bool
) -> None:
    assert serverless.verdict(environ, platform="linux").skip_pull is skip


def test_the_override_wins_in_both_directions_and_the_setting_over_the_variable() -> None:
    lambda_like = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001"}
    off = serverless.verdict(lambda_like | {"LOCALFIRST_SERVERLESS": "0"}, platform="linux")
    assert (off.rule, off.category, off.skip_pull) == (None, "local", False)
    on = serverless.verdict({"LOCALFIRST_SERVERLESS": "1"}, platform="linux")
    assert (on.category, on.skip_pull) == ("serverless", True)
    setting = serverless.verdict(
        lambda_like | {"LOCALFIRST_SERVERLESS": "1"}, platform="linux", override="0"
    )
    assert not setting.skip_pull


def test_webassembly_counts_as_serverless() -> None:
    found = serverless.verdict({}, platform="emscripten")
    assert (found.rule, found.skip_pull) == ("emscripten", True)


def test_a_value_that_could_be_secret_is_not_printed() -> None:
    """Only variables compared with a known word show their value; `set` shows the name."""
    found = serverless.verdict({"AWS_LAMBDA_RUNTIME_API": "hush-value"}, platform="linux")
    assert "hush-value" not in found.reason
