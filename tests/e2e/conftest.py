"""What the tests from outside share: one scripted cloud a file, as new for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.cloud_process import FakeCloud, fake_cloud


@pytest.fixture(scope="module")
def scripted() -> Iterator[FakeCloud]:
    with fake_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(scripted: FakeCloud) -> FakeCloud:
    scripted.reset()
    return scripted
