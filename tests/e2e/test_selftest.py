"""The selftest on this machine: every step on real parts, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.fakes import terminal

pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")


def test_every_step_passes_in_order_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    ran = terminal.run(tmp_path, "selftest", "--json", TMPDIR=str(tmp_path / "tmp"))
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, lines[-1]["passed"]) == (0, True), ran
    assert [line["step"] for line in lines[:-1]] == list(range(1, len(lines)))
    told = "\n".join(line["done"] for line in lines[:-1])
    assert "a model on this machine answered: local/tiny:latest" in told
    assert "a cloud stood in: scripted/one-sentence, as local was unavailable" in told
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_people_are_told_that_the_toys_words_are_noise(tmp_path: Path) -> None:
    with terminal.terminal(tmp_path, "selftest", NO_COLOR="1") as screen:
        assert screen.end() == 0
    assert "(noise: the toy has learnt nothing)" in screen.seen
    assert "the whole ladder works on this machine" in screen.seen
    assert "\x1b[3" not in screen.seen


def test_variables_that_name_other_models_and_hosts_do_not_lead_it_astray(tmp_path: Path) -> None:
    ran = terminal.run(
        tmp_path,
        "selftest",
        OLLAMA_HOST="127.0.0.1:1",
        OLLAMA_MODEL="other:1b",
        LLM_FALLBACK_ORDER="groq",
        GROQ_API_KEY="gsk_not_used",
        LOCALFIRST_PRIVACY="local-only",
    )
    assert ran.code == 0, ran


def test_an_interrupt_ends_every_program_of_it(tmp_path: Path) -> None:
    with terminal.terminal(tmp_path, "selftest") as screen:
        screen.until("served it from a registry")
        children = psutil.Process(screen.child.pid).children(recursive=True)
        screen.type("\x03")
        assert screen.end() == 130
        _, alive = psutil.wait_procs(children, timeout=10)
    assert children and alive == []
    assert "Traceback" not in screen.seen
