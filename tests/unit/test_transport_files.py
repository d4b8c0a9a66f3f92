"""What is guarded: files are whole or absent, links and pipes are refused, locks exclude."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from localfirst.transport import files

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def test_a_written_file_is_private_and_has_the_whole_content(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    files.write_atomic(target, b"old")
    files.write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


@posix_only
def test_the_asked_mode_wins_over_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write_atomic(tmp_path / "blob", b"x", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "blob").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        files.write_atomic(target, b"x")  # a file cannot take a folder's name
    assert list(tmp_path.iterdir()) == [target]


@posix_only
def test_a_disk_that_fills_up_leaves_the_old_content_and_no_rubbish(tmp_path: Path) -> None:
    import resource

    target = tmp_path / "state.json"
    files.write_atomic(target, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError) as caught:
            files.write_atomic(target, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # The name that the caller knows, not that of the file beside it.
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(target))
    assert (target.read_bytes(), list(tmp_path.iterdir())) == (b"old", [target])


@posix_only
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError) as caught:
        files.write_atomic(pipe, b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(pipe))
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


@posix_only
def test_a_name_that_cannot_be_is_named_as_it_was_given(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 300)
    with pytest.raises(OSError) as caught:
        files.write_atomic(target, b"x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(target))


@posix_only
def test_writing_over_a_link_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    link = tmp_path / "link"
    link.symlink_to(victim)
    files.write_atomic(link, b"ours")
    assert victim.read_bytes() == b"untouched"
    assert not link.is_symlink()


@posix_only
def test_reading_refuses_links_pipes_and_oversize(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    assert files.read_bounded(tmp_path / "real", 5) == b"12345"
    for name, code in (("link", errno.ELOOP), ("pipe", errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            files.read_bounded(tmp_path / name, 5)
        assert caught.value.errno == code
    with pytest.raises(OSError) as caught:
        files.read_bounded(tmp_path / "real", 4)
    assert caught.value.errno == errno.EFBIG


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "not" / "yet") > 0


def test_a_path_is_as_far_there_as_its_nearest_folder(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    assert files.existing_parent(inner / "c") == tmp_path
    inner.mkdir(parents=True)
    assert files.existing_parent(inner / "c" / "d") == files.existing_parent(inner) == inner
    assert files.existing_parent(Path("no-such-folder") / "x") == Path.cwd()


def test_bytes_are_read_and_written_at_their_place(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"0123456789")
    descriptor = files.open_regular(path, os.O_RDWR)
    try:
        files.write_at(descriptor, memoryview(b"ab"), 4)
        found = bytearray(b"......")
        assert files.read_at(descriptor, memoryview(found)[:4], 3) == 4
        assert bytes(found) == b"3ab6.."
        assert files.read_at(descriptor, memoryview(found), 8) == 2
    finally:
        os.close(descriptor)
    assert path.read_bytes() == b"0123ab6789"


def test_a_private_folder_is_made_private(tmp_path: Path) -> None:
    made = files.ensure_dir(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_two_locks_on_one_path_exclude_each_other_in_a_process(tmp_path: Path) -> None:
    one, two = files.FileLock(tmp_path / "lock"), files.FileLock(tmp_path / "lock")
    assert one.try_acquire() and not two.try_acquire()
    one.release()
    with two.tried() as mine:
        assert mine and not one.try_acquire()
    assert one.try_acquire()
    one.release()


HOLDER = """
import sys
from pathlib import Path
from localfirst.transport.files import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_shared_locks_stand_beside_each_other_and_exclude_the_one_that_wants_it_alone(
    tmp_path: Path,
) -> None:
    one, two, three = (files.FileLock(tmp_path / "lock") for _ in range(3))
    assert one.try_acquire(shared=True) and two.try_acquire(shared=True)
    assert not three.try_acquire()
    one.release()
    assert not three.try_acquire()
    two.release()
    assert three.try_acquire()
    assert not one.try_acquire(shared=True)
    three.release()


@pytest.mark.skipif(sys.platform == "win32" or not os.geteuid(), reason="root may write anywhere")
def test_a_file_that_may_only_be_read_is_locked_where_that_is_enough(tmp_path: Path) -> None:
    (tmp_path / "lock").touch(0o400)
    with pytest.raises(PermissionError):
        files.FileLock(tmp_path / "lock").try_acquire()
    lock = files.FileLock(tmp_path / "lock", anywhere=True)
    assert lock.try_acquire()
    lock.release()


def test_a_lock_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        lock = files.FileLock(path)
        assert not lock.try_acquire()
        child.kill()
        child.wait(10)
    assert lock.try_acquire()
    lock.release()


@posix_only
def test_a_lock_file_that_is_a_link_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(OSError):
            files.FileLock(tmp_path / name).try_acquire()
