"""`localfirst chat` on real parts: a toy model, the embedded engine, a cloud, a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localfirst.models import toy
from tests.fakes import terminal
from tests.fakes.cloud_process import FakeCloud, with_cloud

pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")


@pytest.fixture
def stocked(tmp_path: Path) -> Path:
    """A machine with the toy model."""
    toy.publish(tmp_path / "models")
    return tmp_path


def asked(cloud: FakeCloud) -> None:
    """Wait until a request has come."""
    for _ in range(2000):
        if cloud.requests():
            return
    pytest.fail("no request came")


def test_the_answer_is_on_stdout_and_who_gave_it_on_stderr(stocked: Path) -> None:
    ran = terminal.run(stocked, "chat", "hello", "--max-tokens", "8")
    assert ran.code == 0, ran
    assert len(ran.out.strip("\n")) >= 1 and ran.out.endswith("\n")
    assert ran.err.startswith("— local/tiny:latest · 8 tokens")


def test_piped_text_is_the_question_and_follows_the_arguments(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    ran = terminal.run(with_cloud(tmp_path, cloud), "chat", "sum up:", stdin="a long text\n")
    assert ran.code == 0, ran
    (request,) = cloud.requests()
    assert request["body"]["messages"] == [{"role": "user", "content": "sum up:\n\na long text"}]


def test_json_is_one_object_and_stderr_is_silent(tmp_path: Path, cloud: FakeCloud) -> None:
    ran = terminal.run(with_cloud(tmp_path, cloud), "chat", "hello", "--json")
    reply = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert reply["route"] == "scripted/m"
    assert reply["attempts"][0]["outcome"] == "ok"


def test_a_cloud_that_fails_first_is_named_after_the_answer(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    toy.publish(tmp_path / "models")
    with_cloud(tmp_path, cloud)
    cloud.script({"do": "status", "status": 500, "times": -1})
    ran = terminal.run(
        tmp_path,
        "chat",
        "hello",
        "--max-tokens",
        "4",
        LOCALFIRST_ORDER="scripted,local",
    )
    assert ran.code == 0, ran
    assert "after scripted (unavailable)" in ran.err


def test_no_question_and_no_terminal_is_a_usage_error(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "chat", stdin="")
    assert ran == (
        2,
        "",
        'error: there is no question [usage]\n\nhint: ask: `localfirst chat "…"`\n',
    )


# --- the conversation ---------------------------------------------------------------------


def test_a_conversation_answers_counts_and_leaves(stocked: Path) -> None:
    with terminal.terminal(stocked, "chat", "--max-tokens", "8") as screen:
        screen.until("> ")
        screen.type("hello\n")
        screen.until("— local/tiny:latest")
        screen.until("> ")
        screen.type("/stats\n")
        assert "local/tiny:latest" in screen.until("> ")
        screen.type("/providers\n")
        assert "GROQ_API_KEY" in screen.until("> ")
        screen.type("\x04")
        assert screen.end() == 0


def test_a_conversation_remembers_what_was_said(tmp_path: Path, cloud: FakeCloud) -> None:
    with terminal.terminal(with_cloud(tmp_path, cloud), "chat", "-s", "be brief") as screen:
        for question in ("first", "second"):
            screen.until("> ")
            screen.type(f"{question}\n")
            screen.until("— scripted/m")
        screen.until("> ")
        screen.type("/exit\n")
        assert screen.end() == 0
    roles = [message["role"] for message in cloud.requests()[-1]["body"]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_without_colours_gets_a_plain_prompt(
    tmp_path: Path, cloud: FakeCloud, variables: dict[str, str]
) -> None:
    with terminal.terminal(with_cloud(tmp_path, cloud), "chat", **variables) as screen:
        screen.until("> ")
        screen.type("/exit\r")
        assert screen.end() == 0
    assert "\x1b[1m" not in screen.seen


def test_an_interrupt_ends_the_answer_and_not_the_conversation(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script({"do": "hang"})
    with terminal.terminal(with_cloud(tmp_path, cloud), "chat") as screen:
        screen.until("> ")
        screen.type("hello\n")
        asked(cloud)
        screen.type("\x03")
        screen.until("interrupted")
        screen.until("> ")
        screen.type("again\n")
        screen.until("— scripted/m")
        screen.until("> ")
        screen.type("\x04")
        assert screen.end() == 0


def test_an_error_is_shown_and_the_conversation_goes_on(stocked: Path) -> None:
    with terminal.terminal(stocked, "chat") as screen:
        screen.until("> ")
        screen.type("/switch groq\n")
        screen.until("nobody now")
        screen.until("> ")
        screen.type("hello\n")
        screen.until("[cascade-exhausted]")
        screen.until("> ")
        screen.type("/bogus\n")
        screen.until("`/help` lists them")
        screen.until("> ")
        screen.type("/exit\n")
        assert screen.end() == 0


def test_what_a_model_says_cannot_steer_the_terminal(tmp_path: Path, cloud: FakeCloud) -> None:
    hostile = "safe\x1b]0;owned\x07\x1b[2Jtext"
    cloud.script({"do": "ok", "text": hostile})
    with terminal.terminal(with_cloud(tmp_path, cloud), "chat", "hello") as screen:
        assert screen.end() == 0
    assert (
        "\x1b]0;" not in screen.seen and "\x1b[2J" not in screen.seen and "\x07" not in screen.seen
    )
    cloud.script({"do": "ok", "text": hostile})
    ran = terminal.run(tmp_path, "chat", "hello")
    assert ran.out == hostile + "\n"
