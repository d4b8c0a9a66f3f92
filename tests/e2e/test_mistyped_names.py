"""A model's name with a slip in it: whoever typed it is told what is near, and nobody is woken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import localfirst
from localfirst.cli import USAGE
from localfirst.config import load
from localfirst.errors import CascadeExhausted
from localfirst.models import toy
from tests.fakes import registry, terminal
from tests.fakes.cloud_process import FakeCloud, with_cloud
from tests.fakes.house import House, house

pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")

SLIP = "llama3.2:1q"
SAY = [{"role": "user", "content": "hello"}]
GONE = {"error": {"message": "The model does not exist", "code": "model_not_found"}}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A machine with `llama3.2:1b`, and a registry that has nothing but another model."""
    folder = tmp_path_factory.mktemp("machine")
    toy.publish(folder / "models", name="library/llama3.2", tag="1b")
    toy.publish(folder / "shop")
    with registry.running(folder / "shop") as shop:
        yield (
            folder,
            {
                "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
                "LOCALFIRST_LOCAL_AUTO_PULL": "true",
                "LOCALFIRST_ORDER": "local,pull",
                "LOCALFIRST_PULL_MIRRORS": f"registry.ollama.ai=http://{shop.host}",
                "LOCALFIRST_ESCALATION_SAME_ERROR": "1",
            },
        )


@pytest.fixture(scope="module")
def at(machine: tuple[Path, dict[str, str]]) -> Iterator[House]:
    folder, variables = machine
    with house(folder, **variables) as running:
        yield running


def woken(folder: Path) -> list[Path]:
    return list(folder.glob("**/escalation_*"))


def test_the_command_offers_the_near_name_and_wakes_nobody(
    machine: tuple[Path, dict[str, str]],
) -> None:
    folder, variables = machine
    for _ in range(2):  # the second one is told from what the registry said to the first
        ran = terminal.run(folder, "chat", "-m", SLIP, "hello", **variables)
        assert (ran.code, ran.out.strip()) == (USAGE, "")
        assert f"error: model `{SLIP}` not found [model-not-found]" in ran.err
        assert "hint: did you mean `llama3.2:1b`" in ran.err
    assert woken(folder) == []


LIBRARY = f"""
import localfirst
from localfirst.errors import UnknownModel
with localfirst.Client() as client:
    try:
        client.chat("hello", model="{SLIP}")
    except UnknownModel as error:
        print(error.nearest[0], error.hint, sep="\\n")
"""


def test_the_library_raises_it_with_the_near_names(
    machine: tuple[Path, dict[str, str]],
) -> None:
    folder, variables = machine
    # In a process of its own: the variables of whoever runs the tests may forbid downloads.
    ran = subprocess.run(
        [sys.executable, "-c", LIBRARY],
        cwd=folder,
        env=terminal.environ(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    nearest, hint = ran.stdout.strip().splitlines()
    assert nearest == "llama3.2:1b"
    assert "did you mean `llama3.2:1b`" in hint
    assert woken(folder) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": SLIP, "messages": SAY}),
        ("/v1/messages", {"model": SLIP, "messages": SAY, "max_tokens": 4}),
        ("/api/chat", {"model": SLIP, "messages": SAY, "stream": False}),
        ("/v1/embeddings", {"model": SLIP, "input": "hello"}),
        ("/api/show", {"model": SLIP}),
        (f"/v1/models/{SLIP}", None),
    ],
)
def test_every_surface_answers_404_with_the_near_name_as_its_hint(
    at: House, path: str, body: dict[str, Any] | None
) -> None:
    answer = httpx.request("POST" if body else "GET", at.url + path, json=body, timeout=30)
    assert answer.status_code == 404, answer.text
    assert answer.headers["x-localfirst-code"] == "model-not-found"
    said = answer.json()
    inside = said["error"] if isinstance(said["error"], dict) else said
    assert inside["hint"].startswith("did you mean `llama3.2:1b`"), said
    assert woken(at.folder) == []


def test_without_downloads_the_near_name_is_told_too(
    machine: tuple[Path, dict[str, str]],
) -> None:
    folder, variables = machine
    settings = load(
        environ=terminal.environ(folder, **variables | {"LOCALFIRST_LOCAL_AUTO_PULL": "false"}),
        cwd=folder,
    ).settings
    with localfirst.Client(settings) as client, pytest.raises(CascadeExhausted) as caught:
        client.chat("hello", model=SLIP)
    assert caught.value.hint.startswith("installed here is `llama3.2:1b`")


def test_a_default_that_its_cloud_gave_up_wakes_somebody(tmp_path: Path, cloud: FakeCloud) -> None:
    """The other side: a name that the settings hold is nobody's slip but theirs."""
    cloud.script({"do": "status", "status": 404, "body": json.dumps(GONE), "times": -1})
    with_cloud(tmp_path, cloud)
    ran = terminal.run(tmp_path, "chat", "-m", "scripted/typo", "hello")
    assert (ran.code, woken(tmp_path)) == (USAGE, [])
    assert "did you mean `scripted/m`" in ran.err
    ran = terminal.run(tmp_path, "chat", "hello", LOCALFIRST_ORDER="scripted")
    assert ran.code == 3
    assert len(woken(tmp_path)) == 1
