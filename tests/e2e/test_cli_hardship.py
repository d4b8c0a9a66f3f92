"""Commands where the system says no: a full disk, closed streams, read-only folders, no home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfirst.models import toy
from tests.fakes.cloud_process import fake_cloud, with_cloud
from tests.fakes.terminal import LONGEST_S, Ran, environ, finished, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and users")
WITH_A_FULL_DISK = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def shell(folder: Path, line: str) -> Ran:
    """A command as a shell runs it, with `localfirst` as a word."""
    command = line.replace("localfirst", f"{sys.executable} -m localfirst", 1)
    return finished(folder, ["/bin/sh", "-c", command])


def said_once(ran: Ran, words: str, *, code: int = 1) -> None:
    """One error of ours with a hint, and no traceback."""
    assert ran.code == code, ran
    assert words in ran.err and "\nhint: " in ran.err
    assert "Traceback" not in ran.err and "Exception ignored" not in ran.err


@WITH_A_FULL_DISK
@pytest.mark.parametrize("words", ["--help", "config", "explain --json", "doctor", "list --json"])
def test_a_full_disk_below_stdout_is_an_error_in_words(tmp_path: Path, words: str) -> None:
    toy.publish(tmp_path / "models")
    said_once(shell(tmp_path, f"localfirst {words} >/dev/full"), "No space left on device", code=4)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_are_no_errors(tmp_path: Path, closed: str) -> None:
    ran = shell(tmp_path, f"localfirst config {closed}")
    assert (ran.code, "Traceback" in ran.err) == (0, False)


@pytest.mark.parametrize("words", ["lock tiny -o full", "bundle export tiny -o full"])
def test_a_disk_that_fills_up_leaves_nothing_and_names_the_file(tmp_path: Path, words: str) -> None:
    toy.publish(tmp_path / "models", params={"stop": ["x" * 900]})
    (tmp_path / "state").mkdir()
    # Counted in blocks of 512 bytes; Python's own caches would be cut by it as well.
    line = f"trap '' XFSZ; ulimit -f 1; PYTHONDONTWRITEBYTECODE=1 localfirst {words}"
    code, out, err = shell(tmp_path, line)
    if words.startswith("lock") and code == 0:
        pytest.skip("the lock fits")
    said_once(Ran(code, out, err), "full`: File too large", code=4)
    assert not list(tmp_path.glob("*full*"))


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("use groq", "config.toml"),
        ("serve --install-service", ".config/systemd/user/localfirst.service"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="another service file")
def test_a_full_disk_does_not_cost_the_file_that_was_there(
    tmp_path: Path, words: str, file: str
) -> None:
    """The service file was emptied first, and with it the next start of the gateway."""
    before = "# mine\n" + "# and long\n" * 99
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(before)
    (tmp_path / "state").mkdir()
    line = f"trap '' XFSZ; ulimit -f 1; PYTHONDONTWRITEBYTECODE=1 localfirst {words}"
    said_once(shell(tmp_path, line), f"`{tmp_path / file}`: File too large", code=4)
    assert (tmp_path / file).read_text() == before
    assert [path.name for path in (tmp_path / file).parent.glob("*.new")] == []


@pytest.mark.parametrize("words", ["lock", "bundle export"])
@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("nowhere/file", "No such file or directory"),
        ("config.toml/file", "Not a directory"),
        (".", "not a regular file"),
        ("x" * 300, "File name too long"),
    ],
    ids=["no-folder", "no-folder-but-a-file", "folder", "long"],
)
def test_an_output_that_cannot_be_is_a_slip_of_the_command_line(
    tmp_path: Path, words: str, file: str, why: str
) -> None:
    toy.publish(tmp_path / "models")
    ran = run(tmp_path, *words.split(), "tiny", "-o", file)
    said_once(ran, f"`{file}`: {why}", code=2)


@pytest.mark.parametrize("words", ["bundle verify", "bundle import", "bundle info", "pull -f"])
@pytest.mark.parametrize(("file", "why"), [("absent", "not there"), (".", "folder")])
def test_a_file_that_is_not_there_is_a_slip_of_the_command_line(
    tmp_path: Path, words: str, file: str, why: str
) -> None:
    """5 says that bytes were looked at and found wrong."""
    ran = run(tmp_path, *words.split(), str(tmp_path / file))
    why = why.replace("not there", "No such file") if words == "pull -f" else why
    assert (ran.code, ran.out) == (2, "")
    assert str(tmp_path) in ran.err and (why in ran.err or "Is a directory" in ran.err)
    assert "Errno" not in ran.err and ran.err.count(str(tmp_path)) == 1


def test_a_configuration_that_is_not_there_names_its_path(tmp_path: Path) -> None:
    ran = run(tmp_path, "config", LOCALFIRST_CONFIG=str(tmp_path / "absent.toml"))
    assert (ran.code, ran.out) == (2, "")
    assert f"unlike `{tmp_path}/absent.toml`" in ran.err


@pytest.mark.parametrize("words", [("lock",), ("bundle", "export")], ids=lambda words: words[-1])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Such as `/dev/stdout`, by an administrator."""
    toy.publish(tmp_path / "models")
    os.mkfifo(tmp_path / "pipe")
    said_once(
        run(tmp_path, *words, "tiny", "-o", str(tmp_path / "pipe")), "not a regular file", code=2
    )
    assert (tmp_path / "pipe").is_fifo()


def restricted(folder: Path, before: list[str], *words: str, **variables: str) -> Ran:
    """A command run by the words *before* it; a test is skipped where those do not work."""
    if before and subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip(f"`{before[0]}` does not work here")
    return finished(folder, [*before, sys.executable, "-m", "localfirst", *words], **variables)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model in which nothing can be written."""
    toy.publish(tmp_path / "models")
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").touch()
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield tmp_path
    for folder in folders:
        folder.chmod(0o755)


def test_read_only_folders_cost_history_and_no_answer(read_only: Path) -> None:
    # An administrator may write everywhere; one without capabilities is a user like others.
    powers = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    before = [] if os.geteuid() else powers
    ran = restricted(
        read_only, before, "chat", "hi", "--max-tokens", "3", LOCALFIRST_LOCAL_ENGINE="auto"
    )
    assert (ran.code, "Traceback" in ran.err) == (0, False), ran
    said_once(restricted(read_only, before, "rm", "tiny"), "Permission denied")
    said_once(restricted(read_only, before, "lock", "tiny"), "`models.lock`: Permission denied")
    install = restricted(read_only, before, "serve", "--install-service")
    said_once(install, "Permission denied")


@pytest.mark.parametrize("words", [["list"], ["config"], ["chat", "hi"], ["serve"]])
def test_without_a_home_the_variables_to_set_are_named(words: list[str], tmp_path: Path) -> None:
    """A user's id without an entry, as containers get: no `HOME`, no home among the users."""
    bare = {"HOME": "", "LOCALFIRST_CONFIG": "", "LOCALFIRST_STATE_DIR": ""}
    ran = restricted(tmp_path, ["unshare", "--user", "--map-user=12345"], *words, **bare)
    assert (ran.code, ran.out, "Traceback" in ran.err) == (2, "", False), ran
    assert "no home folder" in ran.err and "`LOCALFIRST_STATE_DIR`" in ran.err


FEW_LETTERS = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("words", [["--help"], ["list"], ["providers", "--all"], ["recommend"]])
@pytest.mark.parametrize(
    "variables", [FEW_LETTERS, {"PYTHONIOENCODING": "latin-1"}], ids=["ascii", "latin-1"]
)
def test_a_terminal_of_few_letters_gets_question_marks(
    tmp_path: Path, words: list[str], variables: dict[str, str]
) -> None:
    toy.publish(tmp_path / "models")
    done = subprocess.run(
        [sys.executable, "-m", "localfirst", *words],
        capture_output=True,
        env=environ(tmp_path, **variables),
        cwd=tmp_path,
        timeout=LONGEST_S,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done


def test_json_stays_whole_where_letters_are_few(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[escalation]\nwebhook = "https://größe.example"\n')
    ran = run(tmp_path, "config", "escalation.webhook", "--json", **FEW_LETTERS)
    assert json.loads(ran.out)["escalation.webhook"]["value"] == "https://größe.example"


@pytest.mark.parametrize("variables", [{}, FEW_LETTERS], ids=["utf-8", "ascii"])
def test_a_prompt_arrives_whole_and_its_broken_bytes_as_marks(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    with fake_cloud() as cloud:
        line = f"{sys.executable} -m localfirst chat \"$(printf 'gr\\303\\266\\337e')\""
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            capture_output=True,
            text=True,
            env=environ(with_cloud(tmp_path, cloud), **variables),
            cwd=tmp_path,
            timeout=LONGEST_S,
        )
        assert done.returncode == 0, done.stderr
        (request,) = cloud.requests("cloud")
        assert request["body"]["messages"][-1]["content"] == "grö\ufffde"
