"""Gateways as people configure them: by variables alone, restarted, two at once, with options."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from localfirst import Client
from localfirst.config import load
from localfirst.errors import CascadeExhausted
from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import House, house
from tests.fakes.stranger import BARE, SURFACES, Told, ask, provider, route

NO_ENGINE = {"LOCALFIRST_LOCAL_ENGINE": "none", "LOCALFIRST_LOCAL_AUTO_PULL": "false"}
SAY = [{"role": "user", "content": "hi"}]
TEXT = "Hello from the cloud."


@pytest.fixture(scope="module")
def clouds() -> Iterator[FakeCloud]:
    with fake_cloud() as running:
        yield running


@pytest.fixture
def cloud(clouds: FakeCloud) -> FakeCloud:
    clouds.reset()
    return clouds


def keyed(cloud: FakeCloud, *names: str) -> dict[str, str]:
    found = dict(NO_ENGINE)
    for name in names:
        found[f"{name.upper()}_API_KEY"] = f"{name}-key-0123456789abcdef"
        found[f"{name.upper()}_BASE_URL"] = cloud.base_url(name)
    return found


def status(code: int, times: int = 1, **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"do": "status", "status": code, "times": times, "headers": named}


def told(at: House, model: str = "auto", **more: Any) -> Told:
    return asyncio.run(ask(at.url, model, **more))


def state(at: House) -> Any:
    with urllib.request.urlopen(f"{at.url}/localfirst/state", timeout=5) as answer:
        return json.load(answer)


def sent(cloud: FakeCloud, part: str) -> int:
    return len(cloud.requests(part))


# --- by variables alone --------------------------------------------------------------------


def test_a_ladder_of_four_named_clouds_goes_down_in_its_order(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    names = ("anthropic", "gemini", "groq", "openai")
    cloud.script(status(429), part="groq")
    cloud.script("reset", "reset", part="gemini")
    cloud.script({"do": "error_event"}, part="openai")
    with house(tmp_path, **keyed(cloud, *names)) as at:
        found = told(at)
    assert found.trail == "groq=rate_limit,gemini=network,openai=unavailable,anthropic=ok"
    assert (found.text, found.finished, found.attempts) == (TEXT, True, 4)
    assert found.headers["x-localfirst-egress"] == "groq,gemini,openai,anthropic"


def test_several_keys_in_one_variable_and_a_numbered_one(tmp_path: Path, cloud: FakeCloud) -> None:
    environ = keyed(cloud, "groq")
    environ["GROQ_API_KEY"] = "gsk-one-0123456789,gsk-two-0123456789"
    environ["GROQ_API_KEY_2"] = "gsk-three-0123456789"
    cloud.script(status(401, 1), status(429, 1), part="groq")
    with house(tmp_path, **environ) as at:
        found = told(at)
        assert found.trail == "groq=auth,groq=rate_limit,groq=ok"
    assert len({one["headers"]["authorization"] for one in cloud.requests("groq")}) == 3


def test_a_port_where_nobody_listens_costs_milliseconds(tmp_path: Path, cloud: FakeCloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = keyed(cloud, "groq", "gemini") | {"GROQ_BASE_URL": f"http://127.0.0.1:{port}/v1"}
    with house(tmp_path, **environ) as at:
        found = told(at)
        assert found.trail == "groq=network,gemini=ok"
        # Known from here on.
        assert told(at).trail == "gemini=ok"
    assert found.seconds < 1.0


def test_a_port_that_takes_no_connection_costs_the_connect_limit(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        environ = keyed(cloud, "groq", "gemini") | {
            "GROQ_BASE_URL": f"http://127.0.0.1:{full.getsockname()[1]}/v1",
            "LOCALFIRST_TIMEOUTS_CONNECT_S": "0.5",
        }
        with house(tmp_path, **environ) as at:
            found = told(at)
        for one in waiting:
            one.close()
    assert found.trail == "groq=timeout,gemini=ok"
    assert 0.4 < found.seconds < 2.0


def test_a_providers_own_timeout_bounds_whole_answers_too(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script({"do": "hang", "times": -1}, part="groq")
    with house(tmp_path, **keyed(cloud, "groq", "gemini"), GROQ_TIMEOUT="0.5") as at:
        found = told(at, stream=False)
    assert found.trail == "groq=timeout,gemini=ok"
    assert 0.4 < found.seconds < 2.0


# --- from one process to the next ----------------------------------------------------------


def test_a_restart_forgets_no_cooldown_and_a_new_key_ends_that_of_the_old(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    environ = keyed(cloud, "groq", "gemini", "openai")
    cloud.script(status(429, retry_after="300"), part="groq")
    cloud.script(status(401), part="gemini")
    with house(tmp_path, **environ) as at:
        assert told(at).trail == "groq=rate_limit,gemini=auth,openai=ok"
    with house(tmp_path, **environ) as at:
        assert told(at).trail == "openai=ok"
    environ["GEMINI_API_KEY"] = "gemini-another-key-987654321"
    with house(tmp_path, **environ) as at:
        assert told(at).trail == "gemini=ok"
    assert sent(cloud, "groq") == 1


def test_a_restart_forgets_no_limit_that_is_used_up(tmp_path: Path, cloud: FakeCloud) -> None:
    environ = keyed(cloud, "groq", "gemini")
    spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300s"}
    cloud.script({"do": "ok", "headers": spent}, part="groq")
    with house(tmp_path, **environ) as at:
        assert told(at).trail == "groq=ok"
        assert told(at).trail == "gemini=ok"
    with house(tmp_path, **environ) as at:
        assert told(at).trail == "gemini=ok"
    assert sent(cloud, "groq") == 1


def test_the_command_that_a_refused_key_advises_asks_and_heals(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    environ = keyed(cloud, "groq", "gemini")
    cloud.script(status(401), part="groq")
    with house(tmp_path, **environ) as at:
        assert told(at).trail == "groq=auth,gemini=ok"
        assert told(at).trail == "gemini=ok"
        done = command(tmp_path, environ, "test", "groq")
        assert done.returncode == 0, done.stderr
        began = time.monotonic()
        while told(at).trail != "groq=ok":
            assert time.monotonic() - began < 5.0


def command(folder: Path, environ: dict[str, str], *words: str) -> Any:
    """One command beside the gateway that serves from *folder*."""
    variables = environ | {
        "LOCALFIRST_CONFIG": str(folder / "config.toml"),
        "LOCALFIRST_STATE_DIR": str(folder / "state"),
        "HOME": str(folder),
        "PATH": "/usr/bin:/bin",
    }
    whole = [sys.executable, "-m", "localfirst", *words]
    return subprocess.run(
        whole, env=variables, capture_output=True, text=True, timeout=60, check=False
    )


def test_two_gateways_share_what_one_learns(tmp_path: Path, cloud: FakeCloud) -> None:
    environ = keyed(cloud, "groq", "gemini")
    cloud.script(status(429, retry_after="300"), part="groq")
    with house(tmp_path, **environ) as one, house(tmp_path, **environ) as other:
        assert told(one).trail == "groq=rate_limit,gemini=ok"
        began = time.monotonic()
        while not state(other)["cooldowns"]:
            assert time.monotonic() - began < 2.0
        assert told(other).trail == "gemini=ok"
    assert sent(cloud, "groq") == 1


# --- options -------------------------------------------------------------------------------


def test_a_slow_first_candidate_is_hedged(tmp_path: Path, cloud: FakeCloud) -> None:
    cloud.script({"do": "hang", "times": -1}, part="groq")
    environ = keyed(cloud, "groq", "gemini") | {"LOCALFIRST_CASCADE_HEDGE_AFTER_S": "0.3"}
    with house(tmp_path, **environ) as at:
        for stream in (True, False):
            found = told(at, stream=stream)
            assert found.trail == "groq=hedged,gemini=ok"
            assert found.headers["x-localfirst-egress"] == "groq,gemini"
            assert 0.25 < found.seconds < 1.5
        assert all(one["ended"] == "aborted" for one in cloud.requests("groq"))


@pytest.mark.parametrize("surface", SURFACES)
def test_a_cut_stream_is_continued(tmp_path: Path, cloud: FakeCloud, surface: str) -> None:
    cloud.script({"do": "cut", "events": 3}, part="groq")
    cloud.script({"do": "ok", "chunks": [" and", " more"]}, part="gemini")
    environ = keyed(cloud, "groq", "gemini") | {"LOCALFIRST_CASCADE_CONTINUE_CUT_STREAMS": "true"}
    with house(tmp_path, **environ) as at:
        found = told(at, surface=surface)
    assert (found.text, found.finished, found.error) == ("Hello from and more", True, None)
    assert cloud.requests("gemini")[0]["body"]["messages"][-2]["content"] == "Hello from"


STRATEGIES = """
[routes.cheap]
targets = ["groq/openai/gpt-oss-120b", "gemini/gemini-3.5-flash-lite", "openai/nobody-knows"]
strategy = "cheapest"
[routes.fast]
targets = ["groq/m", "gemini/m"]
strategy = "fastest"
[routes.even]
targets = ["groq/m", "gemini/m"]
strategy = "balance"
weights = [1, 3]
"""


def test_strategies_order_their_targets(tmp_path: Path, cloud: FakeCloud) -> None:
    with house(tmp_path, config=STRATEGIES, **keyed(cloud, "groq", "gemini", "openai")) as at:
        cheap = told(at, "cheap")
        assert cheap.status == 200 and not cheap.route.startswith("openai/")
        cloud.script({"do": "ok", "delay_s": 0.2, "times": -1}, part="groq")
        routes = [told(at, "fast").route for _ in range(4)]
        assert routes[2:] == ["gemini/m", "gemini/m"]

        async def crowd() -> list[Told]:
            cloud.script({"do": "ok", "delay_s": 0.4, "times": -1}, part="gemini")
            return await asyncio.gather(*(ask(at.url, "even") for _ in range(8)))

        found = [one.route for one in asyncio.run(crowd())]
        assert (found.count("groq/m"), found.count("gemini/m")) == (2, 6)


# --- the packages that people use ----------------------------------------------------------


def test_the_real_clients_get_answers_past_every_fault(tmp_path: Path, cloud: FakeCloud) -> None:
    faults = (status(503), "reset", "malformed", {"do": "error_event"}, "empty", "html")
    config = BARE + provider("good", cloud.base_url("good"))
    for number, fault in enumerate(faults):
        for kind in SURFACES:
            name = f"f{number}-{kind}"
            cloud.script({**_step(fault), "times": -1}, part=name)
            config += provider(name, cloud.base_url(name)) + route(f"to-{name}", name, "good")
    with house(tmp_path, config=config) as at:
        for number in range(len(faults)):
            assert _by_openai(at, f"to-f{number}-openai") == TEXT
            assert _by_anthropic(at, f"to-f{number}-anthropic") == TEXT
            assert _by_ollama(at, f"to-f{number}-ollama") == TEXT


def _step(fault: Any) -> dict[str, Any]:
    return {"do": fault} if isinstance(fault, str) else dict(fault)


def _by_openai(at: House, model: str) -> str:
    with openai.OpenAI(base_url=f"{at.url}/v1", api_key="x", max_retries=0) as client:
        chunks = client.chat.completions.create(model=model, messages=SAY, stream=True)  # type: ignore[call-overload]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def _by_anthropic(at: House, model: str) -> str:
    with (
        anthropic.Anthropic(base_url=at.url, api_key="x", max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=9, messages=SAY) as events,  # type: ignore[arg-type]
    ):
        return "".join(events.text_stream)


def _by_ollama(at: House, model: str) -> str:
    client = ollama.Client(host=at.url)
    try:
        parts = client.chat(model=model, messages=SAY, stream=True)
        return "".join(part.message.content or "" for part in parts)
    finally:
        client._client.close()


# --- when nobody answers -------------------------------------------------------------------


def test_the_same_report_everywhere(tmp_path: Path, cloud: FakeCloud) -> None:
    """Command line, library and all three surfaces tell the same attempts and advice."""
    cloud.script(status(401, -1), part="groq")
    cloud.script(status(429, -1, retry_after="600"), part="gemini")
    config = "order = ['groq', 'gemini']\n[cascade]\nbackoff_s = [0.01]\nwait_for_cooldown_s = 0\n"
    environ = keyed(cloud, "groq", "gemini")
    lines = ("groq/", ": auth HTTP 401", "check the key: `localfirst test groq`", "gemini/",
             ": rate_limit HTTP 429", "back in 10 min")  # fmt: skip
    texts = {}
    for number, surface in enumerate(SURFACES):
        (tmp_path / f"s{number}").mkdir()
        with house(tmp_path / f"s{number}", config=config, **environ) as at:
            found = told(at, surface=surface, stream=bool(number % 2))
        texts[surface] = found.message
        assert found.status == 429
        assert 590 < int(found.headers["retry-after"]) <= 600
    (tmp_path / "cli").mkdir()
    (tmp_path / "config.toml").write_text(config)
    variables = environ | {
        "LOCALFIRST_CONFIG": str(tmp_path / "config.toml"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "localfirst", "chat", "hi"]
    done = subprocess.run(
        command, env={**variables, "LOCALFIRST_STATE_DIR": str(tmp_path / "cli")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    texts["cli"] = done.stderr
    assert done.returncode == 3
    variables["LOCALFIRST_STATE_DIR"] = str(tmp_path / "library")
    with Client(load(environ=variables).settings) as client, pytest.raises(CascadeExhausted) as no:
        client.chat("hi")
    texts["library"] = no.value.message
    for where, text in texts.items():
        for line in lines:
            assert line in text, (where, text)
    assert not any("key-0123" in text for text in texts.values())
