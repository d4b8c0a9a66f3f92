"""The unit files: what systemd and launchd will read."""

from __future__ import annotations

import plistlib
from pathlib import Path

import pytest

from localfirst.errors import ConfigError
from localfirst.gateway import service
from localfirst.settings import GatewaySettings

ARGV = ("/opt/my apps/python", "-m", "localfirst", "serve", "--port", "100%")
HOME = Path("/home/user")


def test_systemd_gets_a_user_unit_that_restarts_and_reloads() -> None:
    found = service.unit("linux", HOME, ARGV, environ={"LOCALFIRST_CONFIG": "/a b/c.toml"})
    assert found.path == HOME / ".config/systemd/user/localfirst.service"
    lines = found.text.splitlines()
    assert 'ExecStart="/opt/my apps/python" -m localfirst serve --port 100%%' in lines
    assert 'Environment="LOCALFIRST_CONFIG=/a b/c.toml"' in lines
    assert "ExecReload=/bin/kill -HUP $MAINPID" in lines
    assert "Restart=on-failure" in lines and "WantedBy=default.target" in lines
    assert found.commands[-1] == ("systemctl", "--user", "enable", "--now", "localfirst")


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("a b", '"a b"'),
        ("$HOME", "$$HOME"),
        ('say "x"', '"say \\"x\\""'),
        ("a\\b", '"a\\\\b"'),
        ("50%", "50%%"),
        ("a\nb", '"a\\nb"'),
    ],
)
def test_systemd_words_are_taken_literally(word: str, written: str) -> None:
    assert f"ExecStart={written}\n" in service.systemd([word], {})


def test_systemd_replaces_no_variables_in_the_environment() -> None:
    """Only in commands, says systemd.exec(5); a doubled dollar would stay doubled."""
    assert "Environment=PRICE=5$%%\n" in service.systemd(["x"], {"PRICE": "5$%"})


def test_a_folder_and_the_time_to_stop_reach_either_system(tmp_path: Path) -> None:
    folder = tmp_path / "50% mine"
    linux = service.unit("linux", HOME, ARGV, folder=folder, stop_s=70).text.splitlines()
    assert f"WorkingDirectory={tmp_path}/50%% mine" in linux and "TimeoutStopSec=70" in linux
    mac = plistlib.loads(service.unit("darwin", HOME, ARGV, folder=folder, stop_s=70).text.encode())
    assert (mac["WorkingDirectory"], mac["ExitTimeOut"]) == (str(folder), 70)


def test_launchd_gets_a_property_list_that_parses() -> None:
    found = service.unit("darwin", HOME, (*ARGV, "<&>"), environ={"A": "<1>"}, stop_s=12)
    read = plistlib.loads(found.text.encode())
    assert read["ProgramArguments"] == [*ARGV, "<&>"]
    assert read["EnvironmentVariables"] == {"A": "<1>"}
    assert read["KeepAlive"] == {"SuccessfulExit": False}
    assert (read["ExitTimeOut"], read["RunAtLoad"]) == (12, True)
    assert found.path.name == f"{read['Label']}.plist"


def test_elsewhere_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as caught:
        service.unit("win32", HOME, ARGV)
    assert caught.value.code == "service-unsupported"


def test_an_answer_that_outlives_the_stop_leaves_time_to_close_before_a_container_is_killed() -> (
    None
):
    """`docker stop` waits for ten seconds, and all ten went to answers that still ran."""
    assert GatewaySettings().drain_s <= 8.0
