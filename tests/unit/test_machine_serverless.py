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


# As the platforms' own references list them (docs.aws.amazon.com/lambda, fly.io/docs, …).
DOCUMENTED = [
    ({"AWS_EXECUTION_ENV": "AWS_Lambda_python3.12"}, "aws-lambda"),
    ({"AWS_LAMBDA_FUNCTION_NAME": "f", "LAMBDA_TASK_ROOT": "/var/task"}, "aws-lambda"),
    ({"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "_HANDLER": "app.handler"}, "aws-lambda"),
    ({"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}, None),
    ({"AWS_LAMBDA_FUNCTION_NAME": "f"}, None),
    ({"FLY_APP_NAME": "a", "FLY_MACHINE_ID": "m", "FLY_REGION": "fra"}, "fly"),
    ({"RENDER": "true", "RENDER_SERVICE_ID": "srv-1"}, "render"),
    ({"RAILWAY_PROJECT_ID": "p", "RAILWAY_SERVICE_ID": "s"}, "railway"),
]


@pytest.mark.parametrize(("environ", "rule"), DOCUMENTED)
def test_each_documented_environment_gets_its_rule(
    environ: dict[str, str], rule: str | None
) -> None:
    found = serverless.verdict(environ, platform="linux").rule
    assert found == rule or (rule is None and found != "aws-lambda")


def satisfied(condition: serverless.Condition) -> dict[str, str]:
    value = condition.value if isinstance(condition.value, str) else condition.value[0]
    shown = {"set": "x", "eq": value, "in": value.upper(), "startswith": value + "x", "ne": "else"}
    return {condition.var: shown[condition.op]} if condition.op in shown else {}


WAYS = [(rule, group) for rule in serverless.rules() for group in rule.any_of]


@pytest.mark.parametrize(
    ("rule", "group"), WAYS, ids=[f"{rule.id}-{n}" for n, (rule, _) in enumerate(WAYS)]
)
def test_no_platform_hides_another_and_every_condition_of_a_group_counts(
    rule: serverless.Rule, group: tuple[serverless.Condition, ...]
) -> None:
    environ: dict[str, str] = {}
    for condition in group:
        environ |= satisfied(condition)
    assert serverless.verdict(environ, platform="linux").rule == rule.id
    for condition in group:
        less = {name: value for name, value in environ.items() if name != condition.var}
        if condition.op == "unset":
            less[condition.var] = "x"
        elif condition.op == "ne":
            less[condition.var] = str(condition.value)
        matched = rule.match(less)
        assert matched is None or matched != group


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


def test_a_reason_names_what_fired_and_no_more() -> None:
    """A known word is shown with its variable; what has to be absent is not said to be set."""
    found = serverless.verdict({"RAILWAY_PROJECT_ID": "p" * 99}, platform="linux")
    assert "Railway (RAILWAY_PROJECT_ID is set)" in found.reason
    assert "(CI=true is set)" in serverless.verdict({"CI": "true"}, platform="linux").reason
    assert "=" not in found.reason.partition(":")[0]
    notebook = serverless.verdict({"COLAB_RELEASE_TAG": "r"}, platform="linux")
    assert "lost when the session ends" in notebook.reason
    forced = serverless.verdict({"CI": "true"}, platform="linux", override="0")
    assert "although the variables look like" in forced.reason
    plain = serverless.verdict({}, platform="linux", override="0")
    assert "although" not in plain.reason
    assert serverless.verdict({}, platform="linux", override="1").category == "serverless"


def test_a_value_that_could_be_secret_is_not_printed() -> None:
    """Only variables compared with a known word show their value; `set` shows the name."""
    found = serverless.verdict({"AWS_LAMBDA_RUNTIME_API": "hush-value"}, platform="linux")
    assert "hush-value" not in found.reason
