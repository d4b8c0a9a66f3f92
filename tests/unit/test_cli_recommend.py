"""`localfirst recommend`: what it says of models it has seen, and of what nobody can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localfirst.models import toy
from tests.fakes import terminal

SHAPE = toy.Shape(layers=2, embedding=128, heads=4, kv_heads=2, feed_forward=256)


def test_an_ability_that_no_model_has_is_told_with_those_there_are(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "recommend", "--for", "flying")
    assert ran.code == 2
    assert "ability `flying`" in ran.err and "tools, vision" in ran.err


def test_the_first_is_told_with_its_reasons(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "recommend")
    assert ran.code == 0
    first = ran.out.splitlines()[1].split()[0]
    assert f"{first}: " in ran.err and "of memory" in ran.err and "catalogue of 20" in ran.err


def test_what_was_measured_here_stands_in_list_and_recommend(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    toy.publish(tmp_path / "models", name="library/llama3.2", tag="1b", shape=SHAPE)
    said = terminal.run(tmp_path, "chat", "--model", "llama3.2:1b", "--max-tokens", "40", "hi")
    assert said.code == 0, said
    (row,) = (
        json.loads(line) for line in terminal.run(tmp_path, "list", "--json").out.split("\n")[:-1]
    )
    assert row["measured_tokens_per_s"] > 50
    assert row["tokens_per_s"][0] < row["measured_tokens_per_s"] < row["tokens_per_s"][1]
    rows = terminal.run(tmp_path, "recommend", "--all", "--json").out.splitlines()
    found = {one["name"]: one for one in map(json.loads, rows)}["llama3.2:1b"]
    assert found["installed"] and found["fit"]["measured_tokens_per_s"] > 50
    told = terminal.run(tmp_path, "doctor", "--json").out
    assert "tokens/s measured" in told
