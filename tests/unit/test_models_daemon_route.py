"""What is guarded: who is to pull is decided by what a daemon and a store have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from localfirst.models import manifest, names
from localfirst.models.daemon_route import reads
from localfirst.models.store import Store

HERE = "a" * 64


def store(folder: Path, *stored: str) -> Store:
    made = Store(folder)
    for name in stored:
        layer = manifest.Layer(media_type="m", digest="sha256:" + HERE, size_bytes=1)
        made.put_manifest(names.parse(name), manifest.build(layer, (layer,)))
    return made


@pytest.mark.parametrize(
    ("stored", "theirs", "same"),
    [
        ((), {}, None),  # two empty ones tell nothing
        (("a:1",), {}, False),
        ((), {"b:1": "other"}, False),
        (("a:1",), {"b:1": "other"}, False),
        (("a:1",), {"a:1": "other"}, False),  # the same name, and other bytes
        (("a:1",), {"a:1": HERE}, True),
        (("a:1", "c:1"), {"b:1": "other", "a:1": HERE}, True),
    ],
)
def test_one_model_in_common_is_proof_and_one_that_either_lacks_is_proof_against(
    tmp_path: Path, stored: tuple[str, ...], theirs: Mapping[str, str], same: bool | None
) -> None:
    here = store(tmp_path, *stored)
    digests = {model.digest for model in here.models()}
    told = {name: digests.pop() if said == HERE else said for name, said in theirs.items()}
    assert reads(here, told) is same
