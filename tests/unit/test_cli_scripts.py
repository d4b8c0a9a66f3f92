"""Guards the scripts of a bare machine: what they say when it is too bare, and what they repair."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOLS = ("sh", "dirname", "cksum", "cat", "tr", "rm", "basename", "env")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine that has a shell and no Python."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return {"PATH": str(tmp_path / "bin")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout's scripts, without its environment."""
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout" / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    return tmp_path / "checkout"


def script(checkout: Path, name: str, *words: str, environ: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        ["sh", str(checkout / "scripts" / name), *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["run", "test", "check"])
def test_without_python_they_say_what_to_install(
    checkout: Path, bare: dict[str, str], name: str
) -> None:
    code, told = script(checkout, name, environ=bare)
    assert code == 2
    assert "Python 3.11 or newer was not found" in told
    assert "apt install python3" in told


def test_a_python_that_is_too_old_counts_as_none(checkout: Path, bare: dict[str, str]) -> None:
    old = Path(bare["PATH"]) / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, told = script(checkout, "run", environ=bare)
    assert (code, "Python 3.11 or newer was not found" in told) == (2, True)


def test_a_half_made_environment_is_made_anew(checkout: Path, bare: dict[str, str]) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    good = Path(bare["PATH"]) / "python3"
    good.write_text('#!/bin/sh\ncase "$*" in *venv*) echo made it >&2; exit 1;; esac\n')
    good.chmod(0o755)
    code, told = script(checkout, "run", environ=bare)
    assert code == 1
    assert "made it" in told and "apt install python3-venv" in told
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("named", [True, False])
def test_an_optimised_python_goes_first_unless_another_is_named(
    checkout: Path, bare: dict[str, str], tmp_path: Path, named: bool
) -> None:
    folders = [tmp_path / "slow", tmp_path / "fast"]
    for folder in folders:
        folder.mkdir()
        unlike = "exit 1" if folder.name == "slow" else "exit 0"
        (folder / "python3").write_text(
            f'#!/bin/sh\ncase "$*" in *CONFIG_ARGS*) {unlike};; "-m venv"*) exit 1;; esac\n'
        )
        (folder / "python3").chmod(0o755)
    path = ":".join([*map(str, folders), bare["PATH"]])
    chosen = {"PYTHON": str(folders[0] / "python3")} if named else {}
    code, told = script(checkout, "run", environ={**bare, "PATH": path, **chosen})
    assert code == 1
    assert f"({folders[0 if named else 1]}/python3)" in told


def test_bench_names_what_can_be_measured(checkout: Path, bare: dict[str, str]) -> None:
    code, told = script(checkout, "bench", environ=bare)
    assert code == 2
    assert "  gateway   What the gateway costs" in told
    assert "rig" not in told, "what measurements share is none"
    for name in ("nothing", "rig"):
        code, told = script(checkout, "bench", name, environ=bare)
        assert (code, f"no measurement named `{name}`" in told) == (2, True)
