"""`serve --install-service`: a file that systemd takes, and nothing started behind one's back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.terminal import run


def test_print_shows_the_unit_and_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--print", "--port", "8123")
    assert done.code == 0
    assert "--port 8123" in done.out or "<string>8123</string>" in done.out
    assert not list(tmp_path.rglob("*.service"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is Linux's")
def test_install_writes_a_user_unit_and_tells_how_to_start_it(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--install-service")
    assert done.code == 0
    (unit,) = tmp_path.rglob("*.service")
    text = unit.read_text()
    assert f"{sys.executable} -m localfirst serve" in text
    assert "systemctl --user enable" in done.out
    assert "KEY" not in text
    if analyze := shutil.which("systemd-analyze"):
        said = subprocess.run(
            [analyze, "--user", "verify", str(unit)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert "Unknown" not in said.stderr


WORDS = ("serve", "--print", "--log-requests", "--local-only", "--set", "gateway.drain_s=60")


def test_the_service_serves_as_the_command_would_have(tmp_path: Path) -> None:
    """What a flag, a `--set` or a variable said, privacy first, must not end with the shell."""
    done = run(tmp_path, *WORDS, "--set", "order=local,pull", LOCALFIRST_OFFLINE="true")
    assert done.code == 0, done.err
    for words in (
        "--local-only",
        "--log-requests",
        "gateway.drain_s=60",
        "order=local,pull",
        f"LOCALFIRST_CONFIG={tmp_path}/config.toml",
        f"LOCALFIRST_STATE_DIR={tmp_path}/state",
        f"OLLAMA_MODELS={tmp_path}/models",
        "LOCALFIRST_OFFLINE=true",
    ):
        assert words in done.out or words.replace("=", "</key><string>") in done.out, words
    assert "70" in done.out, "60 s for running answers, and what closing the engine takes"


def test_the_way_through_a_proxy_does_not_end_with_the_shell(tmp_path: Path) -> None:
    way = {
        "HTTP_PROXY": "http://proxy.corp:3128",
        "https_proxy": "http://proxy.corp:3128",
        "ALL_PROXY": "http://other.corp:3128",
        "NO_PROXY": "localhost,.corp",
        "SSL_CERT_FILE": "corp.pem",
        "CLOUDFLARE_MODEL": "@cf/meta/llama",
    }
    done = run(tmp_path, "serve", "--print", **way)
    for name, value in (way | {"SSL_CERT_FILE": f"{tmp_path}/corp.pem"}).items():
        words = f"{name}={value}"
        assert words in done.out or words.replace("=", "</key><string>") in done.out, words


def test_a_password_in_an_address_stays_out_of_the_service_file(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "serve",
        "--print",
        HTTPS_PROXY="http://me:opensesame@proxy.corp:3128",
        ALL_PROXY="me:opensesame@proxy.corp:3128",
        LOCALFIRST_PULL_MIRRORS="registry.ollama.ai=https://me:opensesame@mirror.corp",
    )
    assert done.code == 0
    assert "opensesame" not in done.out + done.err
    assert "will not see `HTTPS_PROXY`" in done.err
    assert "will not see `ALL_PROXY`" in done.err
    assert "will not see `LOCALFIRST_PULL_MIRRORS`" in done.err


def test_a_relative_configuration_file_is_found_from_elsewhere_too(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--print", LOCALFIRST_CONFIG="config.toml")
    assert f"{tmp_path}/config.toml" in done.out


def test_a_dotenv_is_found_again_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GROQ_API_KEY=gsk_dotenv_canary\nLLM_MAX_TOKENS=7\n")
    done = run(tmp_path, "serve", "--print", LOCALFIRST_CONFIG="")
    assert str(tmp_path) in done.out[done.out.index("WorkingDirectory") :].splitlines()[0]
    assert "canary" not in done.out + done.err


def test_no_key_gets_into_the_service_file_and_each_one_left_behind_is_named(
    tmp_path: Path,
) -> None:
    key = "gsk_" + "a1b2c3d4" * 6
    done = run(tmp_path, "serve", "--print", GROQ_API_KEY=key, LOCALFIRST_GATEWAY_KEYS="sesame")
    assert done.code == 0
    assert key not in done.out and "sesame" not in done.out
    assert "will not see `GROQ_API_KEY`" in done.err
    assert "will not see `LOCALFIRST_GATEWAY_KEYS`" in done.err
    refused = run(tmp_path, "serve", "--print", "--set", "gateway.keys=sesame")
    assert (refused.code, refused.out) == (2, "")
    assert "sesame" not in refused.err and "`gateway.keys`" in refused.err
