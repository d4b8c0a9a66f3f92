"""Who waits too long for the local engine goes to the next rung, or is told when to come back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from localfirst.errors import CascadeExhausted
from localfirst.events import Reply
from localfirst.runtime import Runtime
from localfirst.settings import LocalSettings, ProviderSettings, Settings
from tests.fakes import cloud_process
from tests.fakes.cloud_process import FakeCloud
from tests.fakes.engine_bench import ask, call_of, fake_daemon, run


@pytest.fixture(scope="module")
def cloud() -> Iterator[FakeCloud]:
    with cloud_process.fake_cloud() as made:
        yield made


@contextlib.asynccontextmanager
async def runtime(
    folder: Path, cloud: FakeCloud, *, order: tuple[str, ...], **local: float
) -> AsyncIterator[Runtime]:
    """A runtime on a slow Ollama, with a cloud behind it."""
    async with fake_daemon({"models": {"tiny": {"word_delay_s": 0.1}}}) as served:
        settings = Settings(
            order=order,
            state_dir=str(folder / "state"),
            local=LocalSettings(
                host=served.endpoint,
                engine="ollama",
                start=False,
                model="tiny",
                models_dir=str(folder / "models"),
                **local,  # type: ignore[arg-type]
            ),
            providers={"scripted": ProviderSettings(base_url=cloud.base_url(), model="m")},
        )
        async with Runtime(settings, environ={}) as made:
            yield made


async def reply(made: Runtime) -> Reply:
    return await made.reply(call_of(ask().chat, model="auto", stream=False))


def test_who_waits_too_long_is_answered_by_the_next_rung_and_nobody_is_blamed(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    async def test() -> None:
        order = ("local", "scripted")
        async with runtime(tmp_path, cloud, order=order, queue_spill_s=0.3) as made:
            replies = await asyncio.gather(*(reply(made) for _ in range(18)))
            assert Counter(each.route for each in replies) == {
                "local/tiny:latest": 16,
                "scripted/m": 2,
            }
            # There is room again, and the engine was never ill.
            assert (await reply(made)).route == "local/tiny:latest"

    run(test)


def test_without_a_next_rung_a_full_line_tells_when_to_come_back(
    tmp_path: Path, cloud: FakeCloud
) -> None:
    async def test() -> None:
        async with runtime(tmp_path, cloud, order=("local",), queue_limit=0) as made:
            given = await asyncio.gather(*(reply(made) for _ in range(20)), return_exceptions=True)
            refusals = [each for each in given if isinstance(each, CascadeExhausted)]
            answered = [each for each in given if isinstance(each, Reply)]
            assert len(refusals) + len(answered) == 20
            assert len(answered) >= 16
            assert refusals
            for error in refusals:
                assert error.http_status == 503
                assert error.retry_after_s is not None
                assert error.retry_after_s > 0

    run(test)
