"""
Every fault of a cloud, over every surface, streamed or not, as a stranger would try them.

One `localfirst serve`, configured by a file and nothing else; each cell of the table is a
provider of its own, with a healthy one behind it on its route. What is asserted went over a
wire: to the client, or to the clouds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.cloud_process import FakeCloud, fake_cloud
from tests.fakes.house import house
from tests.fakes.stranger import BARE, SURFACES, Told, ask, provider, route
from tests.faults import blackbox_statuses as statuses
from tests.faults import blackbox_table as table
from tests.faults.blackbox_table import Row, Step

DIALECTS = ("openai", "anthropic")
# Error bodies are read alike in both dialects: half of those cells is left to long runs.
TORTURE = bool(os.environ.get("LOCALFIRST_TORTURE"))
TEXT = "Hello from the cloud."
ROWS = (*table.CONNECTION, *table.CONTENT, *table.HARMLESS, *table.CUTS, *statuses.ROWS)
LIMITS = """
[timeouts]
connect_s = 1
first_token_s = 0.8
stall_s = 0.8
[cascade]
deadline_s = 5
"""


@dataclass(frozen=True)
class Cell:
    """One fault at one dialect, met through one surface."""

    row: Row
    dialect: str
    surface: str
    stream: bool

    @property
    def name(self) -> str:
        """Short enough for a provider's name."""
        sort = "s" if self.stream else "w"
        return f"{self.row.id}-{self.dialect[0]}-{self.surface[:2]}-{sort}"

    @property
    def step(self) -> Step | None:
        return self.row.step(self.dialect, self.stream)


def cells(row: Row) -> list[Cell]:
    short = row in statuses.ROWS and not TORTURE
    every = [
        Cell(row, dialect, surface, stream)
        for dialect in (DIALECTS[:1] if short else DIALECTS)
        for surface in SURFACES
        for stream in (True, False)
    ]
    return [cell for cell in every if cell.step is not None]


class Bench:
    """
    The gateway and two clouds.

    Nothing at `rude` leaves a connection that could be used again, so that every request
    there is the first one on its socket.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.kind = stack.enter_context(fake_cloud())
        self.rude = stack.enter_context(fake_cloud())
        config = BARE + LIMITS
        for dialect in DIALECTS:
            config += provider(f"good-{dialect}", self.kind.base_url("good"), dialect)
        for cell in (cell for row in ROWS for cell in cells(row)):
            config += provider(cell.name, self.cloud(cell.row).base_url(cell.name), cell.dialect)
            config += route(f"to-{cell.name}", cell.name, f"good-{cell.dialect}")
        self.at = stack.enter_context(house(folder, config=config))

    def cloud(self, row: Row) -> FakeCloud:
        """Where this fault is played."""
        return self.rude if row in table.CONNECTION else self.kind

    def meet(self, row: Row) -> list[tuple[Cell, Told]]:
        """Every cell of a row at once."""
        found = cells(row)
        for cell in found:
            self.cloud(row).script({**(cell.step or {}), "times": -1}, part=cell.name)

        async def main() -> list[Told]:
            return await asyncio.gather(*(self._met(cell) for cell in found))

        return list(zip(found, asyncio.run(main()), strict=True))

    async def _met(self, cell: Cell) -> Told:
        return await ask(self.at.url, f"to-{cell.name}", surface=cell.surface, stream=cell.stream)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path_factory.mktemp("faults"), stack)


def wrong(cell: Cell, told: Told, asked: int) -> list[str]:
    """What a stranger would complain of; empty when all is as it must be."""
    row, found = cell.row, []
    expected = {
        "next": (200, TEXT, True, 2),
        "ok": (200, TEXT, True, 1),
        "cut": (200, None, False, 1),
        "ends": (row.status, "", False, 1),
    }[row.then]
    status, text, finished, attempts = expected
    if told.status != status:
        found.append(f"status {told.status}: {told.message[:200]}")
    if text is not None and told.text != text:
        found.append(f"text {told.text!r}")
    if told.finished != finished:
        found.append(f"finished {told.finished}")
    if row.then in {"cut", "ends"} and not told.error:
        found.append("no error was told")
    if told.attempts != attempts or asked != 1:
        found.append(f"{told.attempts} attempts told, {asked} requests came: {told.trail}")
    first = told.trail.split(",")[0].partition("=")[2]
    wanted = {"ok": "ok", "cut": "ok"}.get(row.then, row.cls)
    if wanted != "*" and first != wanted:
        found.append(f"trail {told.trail}")
    if not told.framed and row.then != "cut":
        found.append("HTTP framing broken")
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_fault_is_survived_or_told_on_every_surface(bench: Bench, row: Row) -> None:
    complaints = {}
    for cell, told in bench.meet(row):
        found = wrong(cell, told, len(bench.cloud(row).requests(cell.name)))
        if found:
            complaints[cell.name] = found
    assert not complaints
