"""
Bytes that are no JSON of any kind, wherever other programs and other disks hand us some.

Beside its own errors msgspec raises two of Python's: for text that is not UTF-8, and for
nesting that is too deep. Neither may end a command that can do without what was in the file.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from localfirst.engines import refusals
from localfirst.engines.experience import Experience, Loading
from localfirst.engines.ollama.listing import Shown, listing
from localfirst.engines.record import Record
from localfirst.errors import UpstreamNonsense
from localfirst.models import bundle, bundle_read, names, parts, pulls
from localfirst.models.manifest import CONFIG_TYPE, Layer, ManifestInvalid, build, parse
from localfirst.models.store import Store

BYTES = [
    pytest.param(b'{"models": [{"name": "\xff\xfe"}], "mediaType": "\xff"}', id="not UTF-8"),
    pytest.param(b'{"mediaType": ' * 5000, id="too deep"),
    pytest.param(b'{"x": ' * 5000 + b"1" + b"}" * 5000, id="too deep, and whole"),
    pytest.param(b"", id="empty"),
    pytest.param(bytes(range(256)), id="binary"),
]


def put(store: Store, data: bytes) -> Layer:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    store.put_bytes(data, digest)
    return Layer(media_type=CONFIG_TYPE, digest=digest, size_bytes=len(data))


@pytest.mark.parametrize("data", BYTES)
def test_a_manifest_is_refused_as_unreadable(data: bytes) -> None:
    with pytest.raises(ManifestInvalid, match="not readable"):
        parse(data)


@pytest.mark.parametrize("data", BYTES)
def test_a_damaged_manifest_hides_no_other_model(data: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    whole = put(store, b"{}")
    store.put_manifest(names.parse("sound"), build(whole, (whole,)))
    store.put_manifest(names.parse("broken"), data)
    assert [model.name for model in store.models()] == ["sound:latest"]
    assert [path.parent.name for path, _ in store.damaged()] == ["broken"]


@pytest.mark.parametrize("data", BYTES)
def test_a_damaged_config_is_one_that_says_nothing(data: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    config = put(store, data)
    store.put_manifest(names.parse("m"), build(config, (config,)))
    assert store.config("m") == {}


@pytest.mark.parametrize("data", BYTES)
def test_a_daemons_list_that_is_none_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(UpstreamNonsense):
        listing(data)


@pytest.mark.parametrize("field", ["size", "size_vram", "context_length"])
def test_a_number_that_go_cannot_hold_was_not_written_by_ollama(field: str) -> None:
    for number in (2**63, 10**330, -(10**330)):
        with pytest.raises(UpstreamNonsense):
            listing(b'{"models": [{"name": "m", "%s": %d}]}' % (field.encode(), number))


@pytest.mark.parametrize("said", ["1" + "0" * 330, "-1", '"2048"', "1e9"])
def test_a_window_that_no_model_has_is_unknown(said: str) -> None:
    info = '{"model_info": {"general.architecture": "a", "a.context_length": ' + said + "}}"
    assert msgspec.json.decode(info, type=Shown).context_tokens == 0


@pytest.mark.parametrize("data", BYTES)
def test_a_refusal_that_cannot_be_read_has_no_inside(data: bytes) -> None:
    assert refusals.unwrapped(data) == {"message": ""}


@pytest.mark.parametrize("data", BYTES)
def test_a_damaged_record_of_a_daemon_is_no_record(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "ollama.json").write_bytes(data)
    assert Record(tmp_path).read() is None


def test_a_state_folder_whose_name_is_not_utf_8_has_a_record_like_any_other(
    tmp_path: Path,
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    assert Record(folder).marker != Record(tmp_path).marker


@pytest.mark.parametrize("data", BYTES)
def test_damaged_experience_is_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "experience.json"
    path.write_bytes(data)
    known = Experience(path)
    assert known.measured(Loading(engine="ollama", model="m")) is None


def test_a_speed_that_no_machine_has_is_not_remembered() -> None:
    known, loading = Experience(None), Loading(engine="ollama", model="m")
    assert not known.note_speed(loading, 10**8, 1e-9)
    assert known.note_speed(loading, 100, 2.0)


@pytest.mark.parametrize("data", BYTES)
def test_a_bundle_with_a_damaged_index_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "models.lfb"
    with tarfile.open(path, "w") as tar:
        bundle.add(tar, bundle.INDEX, data)
    with pytest.raises(parts.BundleInvalid, match="not readable"):
        bundle_read.info(path)


@pytest.mark.parametrize("data", BYTES)
def test_a_damaged_note_of_a_download_is_passed_over(data: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.prepare(pulls.NOTES) / "0.json").write_bytes(data)
    assert pulls.pending(store) == []
