"""The commands that look at the house or steer it: providers, explain, use, doctor, stats, stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from localfirst.models import toy
from tests.fakes import terminal
from tests.fakes.cloud_process import FakeCloud, fake_cloud, with_cloud
from tests.fakes.house import house

# --- keys -------------------------------------------------------------------------------------


def test_no_command_shows_a_key(tmp_path: Path) -> None:
    secret = "gsk_" + "s3cr3t" * 8
    for words in (["providers", "--all"], ["config"], ["explain"], ["doctor"], ["stats"]):
        for more in ([], ["--json"]):
            ran = terminal.run(tmp_path, *words, *more, GROQ_API_KEY=secret, LOCALFIRST_OFFLINE="1")
            assert secret not in ran.out + ran.err, words


def test_a_table_moves_together_on_the_terminal_that_most_people_have(tmp_path: Path) -> None:
    """Two characters too many broke lines of a table that had room between its columns."""
    with terminal.terminal(tmp_path, "providers", columns=80, NO_COLOR="1") as screen:
        screen.end()
        lines = screen.seen.splitlines()
    assert len(lines) > 9
    assert all(len(line) <= 80 for line in lines), lines
    assert not any("…" in line for line in lines), lines


def test_providers_tell_the_state_of_their_keys(tmp_path: Path) -> None:
    ran = terminal.run(
        tmp_path,
        "providers",
        "--json",
        GROQ_API_KEY="gsk_" + "a1b2c3d4" * 6,
        MISTRAL_API_KEY="your-api-key-here",
    )
    rows = {row["id"]: row for row in map(json.loads, ran.out.splitlines())}
    assert rows["groq"]["state"] == "ready"
    assert rows["groq"]["keys"] == ["GROQ_API_KEY"]
    assert rows["mistral"]["state"] == "placeholder key"
    assert (rows["gemini"]["state"], rows["gemini"]["reason"]) == ("no key", "set GEMINI_API_KEY")


def test_a_key_whose_variable_is_not_set_is_told_and_keeps_nobody_from_answering(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    with_cloud(tmp_path, cloud)
    with (tmp_path / "config.toml").open("a") as file:
        file.write('[providers.groq]\nkeys = ["env:NOPE"]\n')
    told = "`providers.groq.keys` names `NOPE`, not set"
    order = {"LOCALFIRST_ORDER": "groq,scripted", "LOCALFIRST_OFFLINE": "1"}
    ran = terminal.run(tmp_path, "providers", "--json", **order)
    (groq,) = [row for row in map(json.loads, ran.out.splitlines()) if row["id"] == "groq"]
    assert (groq["state"], groq["reason"]) == ("key not set", told)
    found = json.loads(terminal.run(tmp_path, "doctor", "--json", **order).out)["findings"]
    (finding,) = [one for one in found if one["code"] == "key-unset"]
    assert (finding["severity"], finding["evidence"]) == ("warn", told)
    assert terminal.run(tmp_path, "chat", "hello", **order).code == 0


def test_config_names_each_source(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('privacy = "local-only"\n')
    ran = terminal.run(tmp_path, "config", "--json", GROQ_API_KEY="gsk_" + "a1b2c3d4" * 6)
    shown = json.loads(ran.out)
    assert shown["privacy"] == {"value": "local-only", "source": str(tmp_path / "config.toml")}
    assert shown["local.engine"] == {"value": "llamacpp", "source": "env LOCALFIRST_LOCAL_ENGINE"}
    assert shown["timeouts.connect_s"] == {"value": "5.0", "source": "default"}
    assert shown["providers.groq.keys"]["value"] == "set (GROQ_API_KEY)"
    assert shown["temperature"] == {"value": None, "source": "default"}, "a dash is for people"
    assert "–" not in ran.out


# --- the ladder ---------------------------------------------------------------------------------


def test_explain_gives_every_rung_a_reason_and_asks_nobody(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    ran = terminal.run(
        with_cloud(tmp_path, cloud), "explain", "--json", LOCALFIRST_ORDER="local,groq,scripted"
    )
    steps = json.loads(ran.out)["steps"]
    assert ran.code == 0
    assert [(step["provider"], step["state"]) for step in steps] == [
        ("local", "skipped"),
        ("groq", "skipped"),
        ("scripted", "ready"),
    ]
    assert all(step["reason"] for step in steps)
    assert cloud.requests() == []


def test_explain_ends_with_three_when_nobody_could_be_asked(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "explain", LOCALFIRST_ORDER="groq")
    assert ran.code == 3
    assert "set GROQ_API_KEY" in ran.out


def test_use_puts_a_rung_first_and_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        "# mine\nprivacy = 'local-only'\n\n[local]\nnum_ctx = 1\n"
    )
    assert terminal.run(tmp_path, "use", "groq").code == 0
    text = (tmp_path / "config.toml").read_text()
    read = tomllib.loads(text)
    assert read["order"][:3] == ["groq", "local", "gemini"]
    assert (read["privacy"], read["local"]) == ("local-only", {"num_ctx": 1})
    assert "# mine" in text
    assert terminal.run(tmp_path, "use", "anthropic").code == 0
    assert tomllib.loads((tmp_path / "config.toml").read_text())["order"][:2] == [
        "anthropic",
        "groq",
    ]
    assert terminal.run(tmp_path, "use", "auto").code == 0
    assert "order" not in tomllib.loads((tmp_path / "config.toml").read_text())


def test_use_writes_through_the_link_that_dotfiles_are_kept_behind(tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles.toml"
    kept.write_text("# meine Schlüssel\nprivacy = 'local-only'\n", encoding="utf-8")
    (tmp_path / "config.toml").unlink(missing_ok=True)
    (tmp_path / "config.toml").symlink_to(kept)
    assert terminal.run(tmp_path, "use", "groq", LC_ALL="C", PYTHONUTF8="0").code == 0
    assert (tmp_path / "config.toml").is_symlink()
    assert kept.read_text(encoding="utf-8").endswith("# meine Schlüssel\nprivacy = 'local-only'\n")


def test_use_says_when_a_variable_goes_before_the_file(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "use", "groq", LLM_FALLBACK_ORDER="local,groq")
    assert ran.code == 0
    assert "warning: `order` is set by env LLM_FALLBACK_ORDER" in ran.err


def test_use_of_no_rung_changes_nothing(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "use", "nobody")
    assert (ran.code, (tmp_path / "config.toml").read_text()) == (2, "")


# --- asking -------------------------------------------------------------------------------------


def test_a_provider_is_tested_with_one_real_question(tmp_path: Path, cloud: FakeCloud) -> None:
    ran = terminal.run(with_cloud(tmp_path, cloud), "test", "scripted", "--json")
    assert (ran.code, json.loads(ran.out)["route"]) == (0, "scripted/m")
    assert len(cloud.requests()) == 1


def test_a_provider_that_refuses_the_key_is_told_with_what_to_do(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    cloud.script({"do": "status", "status": 401, "times": -1})
    ran = terminal.run(with_cloud(tmp_path, cloud), "test", "scripted")
    assert (ran.code, ran.out) == (3, "")
    assert "auth HTTP 401" in ran.err and "hint: " in ran.err


def test_what_was_asked_is_in_the_statistics_of_the_next_process(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    with_cloud(tmp_path, cloud)
    assert terminal.run(tmp_path, "chat", "hello").code == 0
    (row,) = json.loads(terminal.run(tmp_path, "stats", "--json").out)["usage"]
    assert (row["provider"], row["model"], row["requests"], row["failures"]) == (
        "scripted",
        "m",
        1,
        0,
    )


# --- the doctor -----------------------------------------------------------------------------------


def test_the_doctor_carries_the_serverless_verdict(tmp_path: Path) -> None:
    here = json.loads(terminal.run(tmp_path, "doctor", "--json").out)["serverless"]
    there = terminal.run(
        tmp_path,
        "doctor",
        "--json",
        AWS_LAMBDA_FUNCTION_NAME="f",
        AWS_LAMBDA_RUNTIME_API="127.0.0.1:9001",
    )
    told = json.loads(there.out)["serverless"]
    assert (here["rule"], here["category"], here["skip_pull"]) == (None, "local", False)
    assert (told["category"], told["skip_pull"]) == ("serverless", True)
    assert set(here) == {"rule", "category", "skip_pull", "reason"}


def test_a_machine_that_cannot_answer_ends_the_doctor_with_three(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "doctor", LOCALFIRST_OFFLINE="1")
    assert ran.code == 3
    assert "nobody can answer" in ran.out
    assert "-> carry a model here (`localfirst bundle" in ran.out
    assert "connect to a network" not in ran.out, "it was told not to use one"


def test_a_download_from_a_registry_that_is_out_of_reach_is_no_answer(tmp_path: Path) -> None:
    """There was a route, so the doctor promised what the next question could not get."""
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    nobody = "255.255.255.255"  # no connection is ever made to it: the system refuses to try
    ran = terminal.run(
        tmp_path,
        "doctor",
        LOCALFIRST_LOCAL_AUTO_PULL="true",
        LOCALFIRST_LOCAL_LAST_RESORT=f"{nobody}/library/tiny",
    )
    assert ran.code == 3
    assert "error  nobody can answer" in ran.out and "`localfirst bundle" in ran.out
    assert "error  offline" in ran.out


def test_offline_work_is_proven_with_a_real_token(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    toy.publish(tmp_path / "models")
    ran = terminal.run(tmp_path, "doctor", "--offline", "--json")
    report = json.loads(ran.out)
    assert ran.code == 0, ran
    assert (report["proof"]["model"], report["proof"]["tokens"]) == ("tiny:latest", 1)
    assert report["findings"][0]["code"] == "offline-proven"


def test_offline_work_is_not_proven_by_damaged_files(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    published = toy.publish(tmp_path / "models")
    weights = published.blobs[published.model]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    ran = terminal.run(tmp_path, "doctor", "--offline", "--json")
    assert ran.code == 3, ran
    assert json.loads(ran.out)["findings"][0]["code"] == "offline-unproven"


def test_the_guard_of_the_proof_lets_nothing_out() -> None:
    from localfirst.cli.offline import own

    inside = [("127.0.0.1", 80), ("::1", 80, 0, 0), "/run/socket", "localhost", None, (0, 0), b""]
    outside = [("192.0.2.1", 80), ("example.org", 443), "example.org", ("2001:db8::1", 1, 0, 0)]
    assert [own(address) for address in inside] == [True] * len(inside)
    assert [own(address) for address in outside] == [False] * len(outside)


def test_recommended_models_fit_and_say_what_they_take(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "recommend", "--json")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0 and rows
    assert all(row["fit"]["verdict"] != "no" and row["size_bytes"] > 0 for row in rows)


# --- the gateway --------------------------------------------------------------------------


def test_stop_ends_the_gateway_that_listens_there(tmp_path: Path) -> None:
    with house(tmp_path, LOCALFIRST_LOCAL_ENGINE="none") as served:
        port = served.url.rpartition(":")[2]
        ran = terminal.run(tmp_path, "stop", "--port", port)
        assert ran.code == 0, ran
        assert served.child.wait(terminal.LONGEST_S) == 0
    again = terminal.run(tmp_path, "stop", "--port", port)
    assert (again.code, again.out) == (3, "")


@pytest.mark.skipif(sys.platform == "win32", reason="workers need fork")
def test_stop_lets_the_answers_of_workers_finish(tmp_path: Path) -> None:
    """The workers listen too; told by the command and by their parent, they would not wait."""
    with fake_cloud() as cloud:
        config = with_cloud(tmp_path, cloud).joinpath("config.toml").read_text()
        with house(tmp_path, config=config, LOCALFIRST_GATEWAY_WORKERS="2") as served:
            cloud.script({"do": "ok", "chunks": ["word "] * 20, "pause_s": 0.05})
            body = {"stream": True, "messages": [{"role": "user", "content": "x"}]}
            url = f"{served.url}/v1/chat/completions"
            with httpx.stream("POST", url, json=body, timeout=20) as answer:
                pieces = answer.iter_raw()
                got = next(pieces)
                port = served.url.rpartition(":")[2]
                ran = terminal.run(tmp_path, "stop", "--port", port)
                got += b"".join(pieces)
            assert ran.code == 0, ran
            assert got.endswith(b"data: [DONE]\n\n")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with house(tmp_path, LOCALFIRST_LOCAL_ENGINE="none") as served:
        port = served.url.rpartition(":")[2]
        ran = terminal.run(tmp_path, "serve", "--port", port)
    assert (ran.code, ran.out) == (3, "")
    assert port in ran.err and "hint: " in ran.err


def test_a_gateway_for_others_needs_a_key(tmp_path: Path) -> None:
    ran = terminal.run(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0")
    assert (ran.code, ran.out) == (2, "")
    assert "[key-required-off-loopback]" in ran.err


def test_a_model_in_the_gateways_memory_is_listed_and_unloaded(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    toy.publish(tmp_path / "models")
    with house(tmp_path, LOCALFIRST_LOCAL_ENGINE="llamacpp", LOCALFIRST_ORDER="local") as served:
        port = served.url.rpartition(":")[2]
        assert ask(int(port), "POST", "/api/generate", {"model": "tiny"})[0] == 200
        at = ("--set", f"gateway.port={port}")
        loaded = in_memory(tmp_path, at, "tiny:latest")
        assert loaded["size_bytes"] > 0
        assert terminal.run(tmp_path, "unload", "tiny", *at).code == 0
        in_memory(tmp_path, at, "")
        assert terminal.run(tmp_path, "unload", "tiny", *at).code == 1


def test_what_is_not_in_memory_is_said_to_be_so(tmp_path: Path) -> None:
    toy.publish(tmp_path / "models")
    for name in ("tiny", "never-heard-of:7b"):
        ran = terminal.run(tmp_path, "unload", name)
        assert (ran.code, ran.out, ran.err) == (1, "", f"`{name}` was not in memory\n")


@contextmanager
def daemon(script: dict[str, Any]) -> Iterator[dict[str, str]]:
    """An Ollama with a store of its own; yields the variables that lead to it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.ollama_daemon", json.dumps(script)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        host = f"127.0.0.1:{int(child.stdout.readline())}"
        yield {"LOCALFIRST_LOCAL_ENGINE": "ollama", "OLLAMA_HOST": host}
    finally:
        child.kill()
        child.communicate()


def test_a_model_that_only_a_daemon_has_is_removed_by_it(tmp_path: Path) -> None:
    """A service's store is not ours to write, and mostly not even to read."""
    with daemon({"models": {"tiny": {}, "other": {}}}) as there:
        ran = terminal.run(tmp_path, "rm", "tiny", **there)
        left = terminal.run(tmp_path, "list", "--json", **there)
        again = terminal.run(tmp_path, "rm", "tiny", **there)
    assert (ran.code, ran.err) == (0, "removed `tiny` from Ollama's store\n")
    assert [json.loads(line)["name"] for line in left.out.splitlines()] == ["other:latest"]
    assert (again.code, "[model-not-found]" in again.err) == (2, True)


def test_a_model_of_several_daemons_is_removed_by_each_that_has_it(tmp_path: Path) -> None:
    has = {"models": {"tiny": {}}}
    with daemon(has) as one, daemon({"models": {"other": {}}}) as two, daemon(has) as three:
        more = f"{two['OLLAMA_HOST']},{three['OLLAMA_HOST']}"
        hosts = {**one, "LOCALFIRST_LOCAL_HOSTS": more}
        assert terminal.run(tmp_path, "rm", "tiny", **hosts).code == 0
        left = [terminal.run(tmp_path, "list", "--json", **at).out for at in (one, two, three)]
    assert ["tiny" in out for out in left] == [False, False, False]
    assert "other" in left[1]


def test_an_engine_that_fails_is_told_in_words(tmp_path: Path) -> None:
    """A daemon that lists a model as loaded, and refuses to unload it."""
    with daemon(STUBBORN) as there:
        ran = terminal.run(tmp_path, "unload", "tiny", **there)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: the engine did not do it: ")
    assert "hint: run `localfirst doctor`" in ran.err
    assert "Traceback" not in ran.err


STUBBORN = {"models": {"tiny": {"loaded": True}}, "unload": "refused"}


def test_a_configuration_that_is_read_again_leaves_the_model_in_memory(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    toy.publish(tmp_path / "models")
    with house(tmp_path, LOCALFIRST_LOCAL_ENGINE="llamacpp", LOCALFIRST_ORDER="local") as served:
        port = int(served.url.rpartition(":")[2])
        assert (
            ask(port, "POST", "/api/generate", {"model": "tiny", "prompt": "a", "stream": False})[0]
            == 200
        )
        before = psutil.Process(served.child.pid).children(recursive=True)
        assert len(before) == 1
        (tmp_path / "config.toml").write_text("[cascade]\nattempts_per_provider = 1\n")
        served.child.send_signal(signal.SIGHUP)
        served.hears("the configuration was read again")
        assert (
            ask(port, "POST", "/api/generate", {"model": "tiny", "prompt": "a", "stream": False})[0]
            == 200
        )
        assert psutil.Process(served.child.pid).children(recursive=True) == before
    assert not before[0].is_running()


def test_a_gateway_with_a_key_is_asked_with_the_configured_one(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    toy.publish(tmp_path / "models")
    key = "sesame-" + "k" * 32
    with house(
        tmp_path,
        LOCALFIRST_LOCAL_ENGINE="llamacpp",
        LOCALFIRST_ORDER="local",
        LOCALFIRST_GATEWAY_KEYS=key,
    ) as served:
        port = served.url.rpartition(":")[2]
        assert ask(int(port), "POST", "/api/generate", {"model": "tiny"}, key)[0] == 200
        at = ("--set", f"gateway.port={port}")
        known = {"LOCALFIRST_GATEWAY_KEYS": key}
        in_memory(tmp_path, at, "tiny:latest", **known)
        for wrong in ({}, {"LOCALFIRST_GATEWAY_KEYS": "another-" + "k" * 32}):
            for words in (("ps",), ("unload", "tiny")):
                ran = terminal.run(tmp_path, *words, *at, **wrong)
                assert "wants a key" in ran.err, (words, wrong)
                assert key not in ran.out + ran.err
        assert terminal.run(tmp_path, "unload", "tiny", *at, **known).code == 0
        in_memory(tmp_path, at, "", **known)


def test_a_key_is_not_shown_to_a_stranger_on_the_gateways_port() -> None:
    import http.server
    import threading

    from localfirst.cli import running
    from localfirst.settings import GatewaySettings, Secret

    seen: list[str | None] = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("authorization"))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.handle_request, daemon=True).start()
        keys = (Secret("sesame", "a test"),)
        assert running.models(GatewaySettings(port=stranger.server_port, keys=keys)) == []
    assert seen == [None]


def in_memory(folder: Path, at: tuple[str, ...], name: str, **variables: str) -> dict[str, Any]:
    """Ask `ps` until *name* alone is there, or nothing; its status is half a second old."""
    for _ in range(20):
        found = terminal.run(folder, "ps", "--json", *at, **variables).out.splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in found]
        if [row["name"] for row in rows] == ([name] if name else []):
            return rows[0] if rows else {}
    pytest.fail(f"`ps` never told of `{name}` alone")


def ask(port: int, method: str, path: str, body: object, key: str = "") -> tuple[int, object]:
    from localfirst.cli import running
    from localfirst.settings import GatewaySettings, Secret

    keys = (Secret(key, "a test"),) if key else ()
    return running.ask(GatewaySettings(port=port, keys=keys), method, path, body, 30.0)
