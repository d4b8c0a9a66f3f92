"""The commands about model files, as programs: a loopback registry, a real store, a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localfirst.models import toy
from tests.fakes import registry, terminal
from tests.fakes.registry import FakeRegistry
from tests.fakes.terminal import Ran


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    folder = tmp_path_factory.mktemp("shop")
    toy.publish(folder, name="library/tiny")
    toy.publish(folder, name="library/other", seed=1)
    with registry.running(folder) as shop:
        yield shop


@pytest.fixture
def shop(kept: FakeRegistry) -> FakeRegistry:
    """The registry without faults."""
    kept.knobs(reset=True)
    return kept


def run(folder: Path, shop: FakeRegistry, *words: str, **variables: str) -> Ran:
    """A command on a machine for which the registry on loopback is the usual one."""
    mirrors = f"registry.ollama.ai=http://127.0.0.1:{shop.port}"
    return terminal.run(folder, *words, LOCALFIRST_PULL_MIRRORS=mirrors, **variables)


def size_of(shop: FakeRegistry) -> int:
    """The bytes of `tiny` in the registry."""
    manifest = shop.folder / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    document = json.loads(manifest.read_bytes())
    return sum(part["size"] for part in [document["config"], *document["layers"]])


def lines(ran: Ran) -> list[dict[str, object]]:
    return [json.loads(line) for line in ran.out.splitlines()]


def blob(folder: Path) -> Path:
    """The largest blob of the store."""
    return max((folder / "models" / "blobs").iterdir(), key=lambda path: path.stat().st_size)


# --- pull -----------------------------------------------------------------------------------


def test_pull_tells_json_lines_that_end_with_done(tmp_path: Path, shop: FakeRegistry) -> None:
    ran = run(tmp_path, shop, "pull", "tiny", "--json")
    told = lines(ran)
    assert (ran.code, ran.err) == (0, "")
    assert {line["model"] for line in told} == {"tiny:latest"}
    assert told[-1]["state"] == "done"
    assert told[-1]["completed_bytes"] == told[-1]["total_bytes"] == size_of(shop)
    done = [line["completed_bytes"] for line in told]
    assert done == sorted(done, key=lambda count: int(str(count)))


def test_pull_without_a_terminal_draws_no_bar_and_keeps_stdout_empty(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    ran = run(tmp_path, shop, "pull", "tiny")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.endswith("tiny:latest: 470 KB, verified\n")
    assert "\r" not in ran.err and "\x1b" not in ran.err


@pytest.mark.parametrize("columns", [40, 120])
def test_pull_on_a_terminal_draws_a_bar_that_fits_it(
    tmp_path: Path, shop: FakeRegistry, columns: int
) -> None:
    mirrors = f"registry.ollama.ai=http://127.0.0.1:{shop.port}"
    with terminal.terminal(
        tmp_path, "pull", "tiny", columns=columns, NO_COLOR="1", LOCALFIRST_PULL_MIRRORS=mirrors
    ) as screen:
        assert screen.end() == 0
    drawn = [line for line in screen.seen.replace("\r", "\n").split("\n") if "%" in line]
    assert any("100%" in line for line in drawn)
    assert all(len(line) <= columns for line in drawn)
    assert "verified" in screen.seen


def test_one_model_that_is_unknown_does_not_keep_the_others(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    ran = run(tmp_path, shop, "pull", "nope", "tiny", "--json")
    states = {(line["model"], line["state"]) for line in lines(ran)}
    assert ran.code == 1
    assert ("tiny:latest", "done") in states and ("nope:latest", "failed") in states
    (failed,) = [line for line in lines(ran) if line["state"] == "failed"]
    assert failed["error"]["code"] == "model-not-in-registry"  # type: ignore[index, call-overload]
    assert {line["model"] for line in lines(ran)} == {"nope:latest", "tiny:latest"}
    assert "[model-not-in-registry]" in ran.err


def test_a_dry_run_fetches_nothing_and_tells_what_it_would_take(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    ran = run(tmp_path, shop, "pull", "tiny", "--dry-run", "--json")
    (told,) = lines(ran)
    assert ran.code == 0
    assert (told["needed_bytes"], told["disk"], told["fit"]) == (size_of(shop), "fits", "fits")
    assert not (tmp_path / "models" / "blobs").exists() or not list(
        (tmp_path / "models" / "blobs").iterdir()
    )


@pytest.mark.parametrize("words", [["--dry-run"], [], ["--no-fit-check"]])
def test_a_full_disk_ends_with_four_before_the_first_byte(
    tmp_path: Path, shop: FakeRegistry, words: list[str]
) -> None:
    full = {"LOCALFIRST_PULL_RESERVE_DISK": "1000 TB"}
    ran = run(tmp_path, shop, "pull", "tiny", *words, **full)
    assert ran.code == 4, ran
    assert "[insufficient-disk]" in ran.err
    assert run(tmp_path, shop, "pull", "tiny", "--force", **full).code == 0


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_a_model_that_does_not_fit_ends_with_four_before_the_first_byte(
    tmp_path: Path, shop: FakeRegistry, words: list[str]
) -> None:
    """For the context that is configured; a dry run reckoned with another, and saw no trouble."""
    toy.write(tmp_path / "long.gguf", context=2**30)
    shop.publish("library/long", model=(tmp_path / "long.gguf").read_bytes())
    long = {"LOCALFIRST_LOCAL_NUM_CTX": str(2**30)}
    ran = run(tmp_path, shop, "pull", "long", *words, **long)
    assert ran.code == 4, ran
    assert "[insufficient-memory]" in ran.err
    assert "localfirst recommend" in ran.err
    for way in ("--force", "--no-fit-check"):
        assert run(tmp_path, shop, "pull", "long", *words, way, **long).code == 0
    assert run(tmp_path, shop, "pull", "long", *words).code == 0


def test_nothing_to_pull_is_a_usage_error(tmp_path: Path, shop: FakeRegistry) -> None:
    ran = run(tmp_path, shop, "pull")
    assert (ran.code, ran.out) == (2, "")


# --- locks ------------------------------------------------------------------------------------


def test_a_lock_brings_the_same_bytes_and_a_second_time_nothing(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    assert run(tmp_path, shop, "lock", "tiny", "other").code == 0
    first = run(tmp_path, shop, "pull", "-f", "models.lock", "--json")
    shop.knobs(reset=True)
    again = run(tmp_path, shop, "pull", "-f", "models.lock", "--json", "--no-fit-check")
    assert (first.code, again.code) == (0, 0), first
    assert [line["state"] for line in lines(again) if line["state"] == "done"] == ["done"] * 2
    assert shop.requests() == []


def test_a_tag_that_has_moved_ends_with_five_and_update_moves_the_lock(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    assert run(tmp_path, shop, "lock", "tiny").code == 0
    lock = tmp_path / "models.lock"
    digest = lock.read_text().split('digest = "')[1][:64]
    lock.write_text(lock.read_text().replace(digest, "0" * 64))
    ran = run(tmp_path, shop, "pull", "-f", "models.lock")
    assert ran.code == 5, ran
    assert "[lock-moved]" in ran.err
    update = ("pull", "-f", "models.lock", "--update")
    before = lock.read_text()
    dry = run(tmp_path, shop, *update, "--dry-run")
    assert (dry.code, lock.read_text()) == (0, before), dry
    assert run(tmp_path, shop, *update).code == 0
    assert digest in lock.read_text()


def test_a_file_that_is_no_lock_is_a_usage_error(tmp_path: Path, shop: FakeRegistry) -> None:
    (tmp_path / "models.lock").write_text("not = a lock")
    ran = run(tmp_path, shop, "pull", "-f", "models.lock")
    assert (ran.code, ran.out) == (2, "")
    assert "[lock-invalid]" in ran.err


# --- what is installed --------------------------------------------------------------------------


def test_installed_models_are_listed_shown_and_removed(tmp_path: Path, shop: FakeRegistry) -> None:
    assert run(tmp_path, shop, "pull", "tiny", "other").code == 0
    listed = lines(run(tmp_path, shop, "list", "--json"))
    shown = json.loads(run(tmp_path, shop, "show", "tiny", "--json").out)
    assert {(line["name"], line["fit"]) for line in listed} == {
        ("tiny:latest", "fits"),
        ("other:latest", "fits"),
    }
    assert (shown["family"], shown["context_tokens"], shown["fit"]) == ("llama", 2048, "fits")
    removed = run(tmp_path, shop, "rm", "tiny")
    assert removed.code == 0
    assert "shared blob" in removed.err
    assert [line["name"] for line in lines(run(tmp_path, shop, "list", "--json"))] == [
        "other:latest"
    ]


def test_a_name_nobody_has_is_told_the_nearest(tmp_path: Path, shop: FakeRegistry) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    ran = run(tmp_path, shop, "rm", "tinny")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean `tiny:latest`?" in ran.err


def test_a_table_fits_a_narrow_terminal(tmp_path: Path, shop: FakeRegistry) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    with terminal.terminal(tmp_path, "list", columns=50, NO_COLOR="1") as screen:
        assert screen.end() == 0
    assert all(len(line.rstrip("\r")) <= 50 for line in screen.seen.split("\n"))
    assert "\x1b[1m" not in screen.seen


def test_a_table_on_a_very_narrow_terminal_wraps_rather_than_cut_the_names(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    """`llama…` could not be copied into the next command."""
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    with terminal.terminal(tmp_path, "list", columns=30, NO_COLOR="1") as screen:
        assert screen.end() == 0
    assert "tiny:latest" in screen.seen


def test_a_table_has_colour_on_a_terminal_only(tmp_path: Path, shop: FakeRegistry) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    with terminal.terminal(tmp_path, "list") as screen:
        assert screen.end() == 0
    assert "\x1b[1mNAME" in screen.seen
    assert "\x1b" not in run(tmp_path, shop, "list").out


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_damage_is_found_and_repaired(tmp_path: Path, shop: FakeRegistry, words: list[str]) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    assert run(tmp_path, shop, "verify").code == 0
    damaged = blob(tmp_path)
    damaged.chmod(0o644)
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    ran = run(tmp_path, shop, "verify")
    assert ran.code == 5
    assert "corrupt" in ran.out and "tiny:latest" in ran.out
    repaired = run(tmp_path, shop, "verify", "--repair", *words)
    assert repaired.code == 0
    # To a person what was wrong, to a program one JSON object and nothing else.
    assert bool(words) or "corrupt" in repaired.out
    assert not words or json.loads(repaired.out)["ok"] is True
    assert json.loads(run(tmp_path, shop, "verify", "--json").out)["ok"] is True


def test_a_model_that_has_moved_on_is_told(tmp_path: Path, shop: FakeRegistry) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    (told,) = lines(run(tmp_path, shop, "outdated", "--json"))
    assert (told["name"], told["outdated"], told["error"]) == ("tiny:latest", False, "")


def test_an_interrupted_download_is_listed_and_gone_on_with_or_given_up(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    shop.publish("library/large", model=bytes(16 * 2**20))
    shop.knobs(rate=1_000_000)
    mirrors = f"registry.ollama.ai=http://127.0.0.1:{shop.port}"
    with terminal.terminal(tmp_path, "pull", "large", LOCALFIRST_PULL_MIRRORS=mirrors) as screen:
        screen.until("M/16.8M")
        screen.type("\x03")
        assert screen.end() == 130
    assert "Traceback" not in screen.seen
    assert "goes on where it stopped" in screen.seen
    (pending,) = lines(run(tmp_path, shop, "pulls", "--json"))
    assert (pending["name"], pending["active"]) == ("large:latest", False)
    assert 0 < int(str(pending["completed_bytes"])) < 16 * 2**20
    assert run(tmp_path, shop, "pulls", "rm", "large").code == 0
    assert lines(run(tmp_path, shop, "pulls", "--json")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_download_that_is_ended_from_outside_keeps_all_that_it_told_of(
    tmp_path: Path, shop: FakeRegistry, number: signal.Signals
) -> None:
    """A session that ends hangs up on what runs in it; that lost what was not yet written down."""
    shop.publish("library/large", model=bytes(16 * 2**20))
    shop.knobs(rate=4_000_000)
    child = subprocess.Popen(
        [sys.executable, "-m", "localfirst", "pull", "large", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=terminal.environ(
            tmp_path, LOCALFIRST_PULL_MIRRORS=f"registry.ollama.ai=http://127.0.0.1:{shop.port}"
        ),
    )
    assert child.stdout is not None
    told = 0
    while told < 2**20:
        told = json.loads(child.stdout.readline())["completed_bytes"]
    child.send_signal(number)
    _, said = child.communicate(timeout=terminal.LONGEST_S)
    assert child.returncode == 128 + number
    assert "goes on where it stopped" in said and "Traceback" not in said
    (pending,) = lines(run(tmp_path, shop, "pulls", "--json"))
    assert int(str(pending["completed_bytes"])) >= told


def test_a_download_ends_with_its_terminal_unless_it_was_told_not_to(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    shop.publish("library/large", model=bytes(4 * 2**20))
    shop.knobs(rate=1_000_000)
    mirrors = f"registry.ollama.ai=http://127.0.0.1:{shop.port}"
    with terminal.terminal(tmp_path, "pull", "large", LOCALFIRST_PULL_MIRRORS=mirrors) as screen:
        screen.until("M/4.19M")
        screen.close()
        assert screen.child.wait(terminal.LONGEST_S) > 0, "it left by itself"
    (pending,) = lines(run(tmp_path, shop, "pulls", "--json"))
    assert pending["active"] is False
    with terminal.terminal(
        tmp_path, "pull", "large", before=["nohup"], LOCALFIRST_PULL_MIRRORS=mirrors
    ) as screen:
        log = tmp_path / "nohup.out"
        while not (log.exists() and "large" in log.read_text()):
            assert screen.child.poll() is None
            time.sleep(0.01)
        screen.close()
        assert screen.child.wait(terminal.LONGEST_S) == 0


# --- bundles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(), ("--split", "100K")])
def test_a_bundle_carries_a_model_to_a_machine_without_a_network(
    tmp_path: Path, shop: FakeRegistry, split: tuple[str, ...]
) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    assert run(tmp_path, shop, "bundle", "export", "tiny", "-o", "m.lfb", *split).code == 0
    assert run(tmp_path, shop, "bundle", "verify", "m.lfb").code == 0
    (model,) = json.loads(run(tmp_path, shop, "bundle", "info", "m.lfb", "--json").out)["models"]
    assert model["name"] == "registry.ollama.ai/library/tiny:latest"
    away = {"OLLAMA_MODELS": str(tmp_path / "away"), "LOCALFIRST_OFFLINE": "true"}
    shop.knobs(reset=True)
    ran = run(tmp_path, shop, "bundle", "import", "m.lfb", **away)
    assert ran.code == 0, ran
    assert shop.requests() == []
    assert [line["name"] for line in lines(run(tmp_path, shop, "list", "--json", **away))] == [
        "tiny:latest"
    ]


def test_a_damaged_bundle_ends_with_five_and_brings_nothing(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    assert run(tmp_path, shop, "bundle", "export", "tiny", "-o", "m.lfb").code == 0
    data = bytearray((tmp_path / "m.lfb").read_bytes())
    data[200_000] ^= 1
    (tmp_path / "m.lfb").write_bytes(data)
    away = {"OLLAMA_MODELS": str(tmp_path / "away")}
    ran = run(tmp_path, shop, "bundle", "import", "m.lfb", **away)
    assert ran.code == 5, ran
    assert lines(run(tmp_path, shop, "list", "--json", **away)) == []


def test_a_split_without_its_unit_makes_no_million_parts(
    tmp_path: Path, shop: FakeRegistry
) -> None:
    assert run(tmp_path, shop, "pull", "tiny").code == 0
    ran = run(tmp_path, shop, "bundle", "export", "tiny", "--split", "4")
    assert (ran.code, "`--split 4G`" in ran.err) == (2, True)
    assert not list(tmp_path.glob("*models.lfb*"))
