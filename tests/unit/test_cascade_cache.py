"""The same question at temperature 0 is asked once; nothing else is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from localfirst.cascade.cache import Cache
from localfirst.errors import Breakage, StreamInterrupted, UpstreamBroken
from localfirst.events import Opened, Relayed, TextDelta
from localfirst.ledger.db import connect
from localfirst.types import ChatRequest, Message
from tests.fakes.scripted_backend import House, ScriptedBackend, make_call, says
from tests.fakes.virtual_time import run


class Desk:
    """A shelf that works at once."""

    def __init__(self, path: Path) -> None:
        self.db = connect(path)

    async def run(self, work: Any) -> Any:
        await asyncio.sleep(0)
        return work(self.db)


def question(text: str = "hi", temperature: float | None = 0.0, **rest: Any) -> Any:
    messages = (Message(role="user", content=text),)
    return make_call(request=ChatRequest(messages=messages, temperature=temperature), **rest)


def scene(path: Path, *scripts: Any, size_bytes: int = 1_000_000) -> tuple[House, Desk]:
    desk = Desk(path / "x.db")
    house = House({"groq": ScriptedBackend(*scripts)})
    house.cascade._cache = Cache(desk, ttl_s=60.0, size_bytes=size_bytes, now_unix=house.clock.unix)
    return house, desk


async def text_of(house: House, call: Any) -> tuple[str, str]:
    answer = await house.cascade.open(call)
    reply = await answer.reply()
    return reply.text, dict(answer.headers()).get("x-localfirst-cache", "")


def test_the_same_question_is_answered_from_before_until_it_is_too_old(tmp_path: Path) -> None:
    async def main() -> None:
        house, desk = scene(tmp_path, says("one"), says("two"))
        assert await text_of(house, question()) == ("one", "")
        assert await text_of(house, question()) == ("one", "hit")
        assert len(house.backends["groq"].asked) == 1
        house.clock.advance(61.0)
        assert await text_of(house, question()) == ("two", "")
        desk.db.close()

    run(main())


@pytest.mark.parametrize(
    "other",
    [{"temperature": 0.5}, {"temperature": None}, {"text": "ho"}, {"stream": False}],
    ids=str,
)
def test_another_question_is_asked(tmp_path: Path, other: dict[str, Any]) -> None:
    async def main() -> None:
        house, desk = scene(tmp_path, says("one"), says("two"))
        await text_of(house, question())
        assert await text_of(house, question(**other)) == ("two", "")
        desk.db.close()

    run(main())


def test_relayed_bytes_come_back_as_they_were(tmp_path: Path) -> None:
    async def main() -> None:
        events = [Relayed(b"1"), Relayed(b"2", content=True), Relayed(b"3", final=True)]
        house, desk = scene(tmp_path, [Opened(200), *events])
        for _ in range(2):
            answer = await house.cascade.open(question(relay=True))
            assert [event async for event in answer] == events
        assert len(house.backends["groq"].asked) == 1
        desk.db.close()

    run(main())


def test_a_cut_answer_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        cut = [Opened(200), TextDelta("a"), UpstreamBroken(Breakage.CUT)]
        house, desk = scene(tmp_path, cut)
        with pytest.raises(StreamInterrupted):
            await text_of(house, question())
        assert desk.db.execute("SELECT count(*) FROM answers").fetchone() == (0,)
        assert house.unanswered == 0
        desk.db.close()

    run(main())


def test_the_longest_unused_goes_first_and_no_prompt_is_stored(tmp_path: Path) -> None:
    async def main() -> None:
        house, desk = scene(tmp_path, says("x" * 400), size_bytes=1500)
        for n in range(8):
            await text_of(house, question(f"secret question {n}"))
            house.clock.advance(1.0)
        (total,) = desk.db.execute("SELECT sum(size) FROM answers").fetchone()
        assert 0 < total <= 1500
        assert await text_of(house, question("secret question 7")) == ("x" * 400, "hit")
        desk.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        desk.db.close()

    run(main())
    assert b"secret question" not in (tmp_path / "x.db").read_bytes()


def test_a_shelf_that_is_gone_costs_nothing_but_the_cache() -> None:
    class Gone:
        async def run(self, work: Any) -> None:
            return None

    async def main() -> None:
        house = House({"groq": ScriptedBackend()})
        house.cascade._cache = Cache(Gone(), ttl_s=9.0, size_bytes=99, now_unix=house.clock.unix)
        assert await text_of(house, question()) == ("hello", "")

    run(main())
