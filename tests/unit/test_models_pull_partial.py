"""What is guarded: the journal grants only bytes that are there, after any crash or power cut."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from localfirst.errors import PullError, UnknownModel
from localfirst.models import manifest, names, pulls
from localfirst.models.manifest import CONFIG_TYPE, LAYER_PREFIX, Layer
from localfirst.models.pull_partial import (
    Partial,
    boot_id,
    completed_bytes,
    folder_of,
    look,
    take_over,
)
from localfirst.models.pull_ranges import Ranges
from localfirst.models.store import Store
from localfirst.transport.files import FileLock

SIZE = 1000
LAYER = Layer(media_type=LAYER_PREFIX + "model", digest="sha256:" + "ab" * 32, size_bytes=SIZE)


def opened(store: Store, boot: str = "boot-1") -> Partial:
    return Partial(store, LAYER, boot=boot)


def filled(store: Store) -> Partial:
    """100 bytes synced, 100 more only written, as a run of the first boot leaves it."""
    partial = opened(store)
    os.pwrite(partial.descriptor, b"x" * 100, 0)
    partial.sync(Ranges([(0, 100)]))
    os.pwrite(partial.descriptor, b"x" * 100, 500)
    partial.written(500, 600)
    partial.close()
    return partial


def test_a_killed_process_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    filled(Store(tmp_path))
    again = opened(Store(tmp_path))
    assert list(again.done) == [(0, 100), (500, 600)]
    again.close()


def test_a_process_that_is_killed_twice_loses_nothing_either(tmp_path: Path) -> None:
    filled(Store(tmp_path))
    for _ in range(2):
        again = opened(Store(tmp_path))
        assert list(again.done) == [(0, 100), (500, 600)]
        assert os.fstat(again.descriptor).st_size == SIZE
        again.close()


def test_what_is_flushed_is_noted_once_and_before_the_power_fails(tmp_path: Path) -> None:
    partial = filled(Store(tmp_path))
    again = opened(Store(tmp_path))
    before = partial.journal.read_text()
    again.sync(Ranges([(0, 100)]))
    assert partial.journal.read_text() == before
    for _ in range(2):
        again.sync(Ranges([(0, 100), (500, 600)]))
    assert partial.journal.read_text() == before + "S 500 600\n"
    again.close()
    after = opened(Store(tmp_path), "boot-2")
    assert list(after.done) == [(0, 100), (500, 600)]
    after.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing tells which files are open")
def test_a_partial_leaves_no_file_open(tmp_path: Path) -> None:
    def held() -> list[str]:
        links = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        return [link for link in links if str(tmp_path) in link]

    partial = opened(Store(tmp_path))
    partial.forget()
    assert len(held()) == 2  # the bytes and the journal, not the one that it replaced
    partial.close()
    partial.close()
    assert held() == []
    partial.journal.unlink()
    partial.journal.mkdir()
    with pytest.raises(OSError):
        opened(Store(tmp_path))
    assert held() == []


def test_a_boot_has_one_name(tmp_path: Path) -> None:
    assert boot_id() == boot_id() != ""
    linux = Path("/proc/sys/kernel/random/boot_id")
    assert not linux.exists() or boot_id() == linux.read_text().strip()


def test_after_a_restart_only_what_was_flushed_counts(tmp_path: Path) -> None:
    filled(Store(tmp_path))
    again = opened(Store(tmp_path), "boot-2")
    assert list(again.done) == [(0, 100)]
    again.close()
    third = opened(Store(tmp_path), "boot-1")  # a boot's name never comes back to life
    assert list(third.done) == [(0, 100)]
    third.close()


def test_without_a_boots_name_only_what_was_flushed_counts(tmp_path: Path) -> None:
    filled(Store(tmp_path))
    again = opened(Store(tmp_path), "")
    assert list(again.done) == [(0, 100)]
    again.close()


def test_a_journal_torn_at_any_byte_grants_no_byte_that_is_not_there(tmp_path: Path) -> None:
    partial = filled(Store(tmp_path))
    whole = partial.journal.read_bytes()
    truth = Ranges([(0, 100), (500, 600)])
    for cut in range(len(whole) + 1):
        for tail in (b"", b"\0" * 40, b"\xff\n", b"W 0 9"):
            partial.journal.write_bytes(whole[:cut] + tail)
            again = opened(Store(tmp_path))
            assert not again.done.without(truth).total, (cut, tail)
            again.close()


@pytest.mark.parametrize(
    "line",
    ["S 0 1001", "S 5 5", "S 9 5", "S -1 5", "S 0 5 7", "S 0", "S 0x0 5", "S ٣ 5", "X 0 5", "",
     "S 0 " + "9" * 5000, "S " + "0" * 5000 + " 5"],
)  # fmt: skip
def test_a_line_that_makes_no_sense_counts_as_nothing(tmp_path: Path, line: str) -> None:
    partial = opened(Store(tmp_path))
    partial.close()
    with partial.journal.open("a") as stream:
        stream.write(line + "\n")
    again = opened(Store(tmp_path))
    assert again.done.total == 0
    again.close()


def test_a_journal_of_another_blob_or_size_counts_as_nothing(tmp_path: Path) -> None:
    partial = filled(Store(tmp_path))
    text = partial.journal.read_text()
    partial.journal.write_text(text.replace(" 1000\n", " 2000\n"))
    again = opened(Store(tmp_path))
    assert again.done.total == 0
    again.close()


def test_data_shorter_than_its_journal_says_is_not_believed(tmp_path: Path) -> None:
    partial = filled(Store(tmp_path))
    os.truncate(partial.data, 550)
    again = opened(Store(tmp_path))
    assert list(again.done) == [(0, 100), (500, 550)]
    again.close()


def test_false_bytes_are_forgotten_for_good(tmp_path: Path) -> None:
    filled(Store(tmp_path))
    again = opened(Store(tmp_path))
    again.forget()
    assert os.pread(again.descriptor, 200, 0) == b"\0" * 200
    assert os.fstat(again.descriptor).st_size == SIZE
    again.close()
    third = opened(Store(tmp_path))
    assert third.done.total == 0
    third.close()


def test_a_partial_in_a_links_place_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    store.prepare("partial", folder_of(store, LAYER.digest).name)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (folder_of(store, LAYER.digest) / "data").symlink_to(victim)
    with pytest.raises(OSError):
        opened(store)
    assert victim.read_bytes() == b"mine"


def test_looking_changes_nothing(tmp_path: Path) -> None:
    partial = filled(Store(tmp_path))
    before = partial.journal.read_bytes()
    info = look(partial.folder, boot="boot-1")
    assert info is not None and (info.completed_bytes, info.size_bytes) == (200, SIZE)
    assert partial.journal.read_bytes() == before
    (partial.folder / "journal").write_bytes(b"rubbish")
    assert look(partial.folder) is None


# --- an interrupted `ollama pull` ----------------------------------------------------------


def interrupted(store: Store, *, old_s: float, now: float = 1e9) -> Path:
    """Files as in the recorded case `pull/multi_part_cancelled_after`, `old_s` seconds ago."""
    store.prepare()
    theirs = store.blobs / ("sha256-" + "ab" * 32 + "-partial")
    theirs.write_bytes(b"y" * SIZE)
    parts = [(0, 0, 400, 250), (1, 400, 400, 0), (2, 800, 200, 200)]
    for number, offset, size, completed in parts:
        words = {"N": number, "Offset": offset, "Size": size, "Completed": completed}
        Path(f"{theirs}-{number}").write_text(json.dumps(words) + "\n")
    for path in store.blobs.iterdir():
        os.utime(path, (now - old_s, now - old_s))
    return theirs


def test_an_interrupted_ollama_pull_is_gone_on_with(tmp_path: Path) -> None:
    store = Store(tmp_path)
    interrupted(store, old_s=61)
    assert take_over(store, LAYER, now_unix=1e9) == 450
    again = Partial(store, LAYER, boot=boot_id())
    assert list(again.done) == [(0, 250), (800, 1000)]
    again.close()
    assert list(store.blobs.iterdir()) == []


def test_a_file_that_a_daemon_may_be_writing_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    theirs = interrupted(store, old_s=5)
    assert take_over(store, LAYER, now_unix=1e9) == 0
    assert theirs.exists()
    assert take_over(store, LAYER, now_unix=1e9, daemon_idle=True) == 450


@pytest.mark.parametrize("fresh", ["", "-0", "-2"])
def test_one_file_that_was_just_written_is_enough_to_leave_all_alone(
    tmp_path: Path, fresh: str
) -> None:
    """A daemon writes bytes and notes by turns: either may be the older one."""
    store = Store(tmp_path)
    theirs = interrupted(store, old_s=1000)
    os.utime(f"{theirs}{fresh}", (1e9 - 59, 1e9 - 59))
    assert take_over(store, LAYER, now_unix=1e9) == 0
    os.utime(f"{theirs}{fresh}", (1e9 - 60, 1e9 - 60))
    assert take_over(store, LAYER, now_unix=1e9) == 450
    assert (folder_of(store, LAYER.digest) / "data").stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_partials_place_is_not_taken_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    theirs = interrupted(store, old_s=1000)
    victim = tmp_path / "victim"
    theirs.rename(victim)
    theirs.symlink_to(victim)
    assert take_over(store, LAYER, now_unix=1e9) == 0
    assert victim.read_bytes() == b"y" * SIZE and theirs.is_symlink()
    theirs.unlink()
    assert take_over(store, LAYER, now_unix=1e9) == 0, "notes without bytes"


def test_only_a_partial_of_this_very_size_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    partial = Partial(store, LAYER)
    partial.sync(Ranges([(0, 100)]))
    assert completed_bytes(store, LAYER) == 100
    other = Layer(media_type=LAYER.media_type, digest=LAYER.digest, size_bytes=SIZE + 1)
    assert completed_bytes(store, other) == 0
    partial.remove()
    assert completed_bytes(store, LAYER) == 0 and not partial.folder.exists()


def test_a_folder_of_another_digest_than_its_journal_says_is_none(tmp_path: Path) -> None:
    partial = filled(Store(tmp_path))
    moved = partial.folder.with_name("sha256-" + "ef" * 32)
    partial.folder.rename(moved)
    assert look(moved) is None


def test_an_own_partial_wins_over_ollamas(tmp_path: Path) -> None:
    store = Store(tmp_path)
    filled(store)
    theirs = interrupted(store, old_s=100)
    assert take_over(store, LAYER, now_unix=1e9) == 0
    assert theirs.exists()


def test_a_partial_of_which_nothing_is_known_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    theirs = interrupted(store, old_s=100)
    for number in range(3):
        Path(f"{theirs}-{number}").write_text("")
        os.utime(f"{theirs}-{number}", (1e9 - 100, 1e9 - 100))
    assert take_over(store, LAYER, now_unix=1e9) == 0
    assert list(store.blobs.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"N":0,"Offset":0,"Size":10,"Completed":99}', '{"N":0}', "[]",
     '{"N":0,"Offset":-9,"Size":400,"Completed":250}',
     '{"N":0,"Offset":0,"Size":400,"Completed":0}',
     '{"N":0,"Offset":900,"Size":400,"Completed":250}'],
)  # fmt: skip
def test_a_sidecar_that_makes_no_sense_counts_as_nothing(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    theirs = interrupted(store, old_s=100)
    Path(f"{theirs}-0").write_text(text)
    os.utime(f"{theirs}-0", (1e9 - 100, 1e9 - 100))
    assert take_over(store, LAYER, now_unix=1e9) == 200


# --- the list of unfinished pulls ----------------------------------------------------------


def noted(store: Store) -> None:
    config = Layer(media_type=CONFIG_TYPE, digest="sha256:" + "cd" * 32, size_bytes=50)
    data = manifest.build(config, (LAYER,))
    pulls.note(store, names.parse("me/tiny:v1"), manifest.parse(data), 77.0)


def test_unfinished_pulls_are_listed_by_model_with_size_and_age(tmp_path: Path) -> None:
    store = Store(tmp_path)
    noted(store)
    Partial(store, LAYER, boot=boot_id()).close()
    partial = Partial(store, LAYER, boot=boot_id())
    partial.sync(Ranges([(0, 300)]))
    (item,) = pulls.pending(store)
    assert (item.name, item.size_bytes, item.completed_bytes) == ("me/tiny:v1", 1050, 300)
    assert item.started_unix == 77.0 and not item.active
    partial.close()


def test_a_partial_that_no_note_names_is_listed_by_its_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    filled(store)
    (item,) = pulls.pending(store)
    assert item.name == LAYER.digest
    assert pulls.remove(store, LAYER.digest) == item.completed_bytes
    assert pulls.pending(store) == []


def test_removing_an_unfinished_pull_frees_its_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    noted(store)
    Partial(store, LAYER, boot=boot_id()).close()
    pulls.remove(store, "me/tiny:v1")
    assert pulls.pending(store) == [] and not folder_of(store, LAYER.digest).exists()
    with pytest.raises(UnknownModel):
        pulls.remove(store, "me/tiny:v1")


def test_a_pull_that_runs_is_marked_and_not_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    noted(store)
    Partial(store, LAYER, boot=boot_id()).close()
    lock = FileLock(store.prepare("locks") / ("ab" * 32 + ".lock"))
    assert lock.try_acquire()
    (item,) = pulls.pending(store)
    assert item.active
    with pytest.raises(PullError) as caught:
        pulls.remove(store, "me/tiny:v1")
    assert caught.value.code == "pull-active"
    lock.release()


def test_rubbish_among_the_notes_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.prepare("pulls")
    (folder / "x.json").write_bytes(b"{")
    (folder / "y.json").write_bytes(b'{"name":"../../x","manifest":"{}","started_unix":1}')
    assert pulls.pending(store) == []
