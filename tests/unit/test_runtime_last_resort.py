"""The last resort of a machine: as configured, or what fits instead, and never without a word."""

from __future__ import annotations

import pytest

from localfirst.machine import recommend
from localfirst.machine.fit import Cpu, Disk, Hardware
from localfirst.runtime.last_resort import CHOSEN_S, LastResort
from localfirst.settings import LocalSettings, Settings
from localfirst.transport.clock import SystemClock

GB = 10**9


class Scale:
    """What the gauge last measured, set by the test."""

    def __init__(self, ram: int, disk: int = 200 * GB) -> None:
        self.hardware = Hardware(
            ram_total_bytes=ram,
            ram_available_bytes=int(ram * 0.8),
            cpu=Cpu(cores=8, threads=16),
            disk=Disk(path="/m", free_bytes=disk, total_bytes=500 * GB),
        )

    def now(self) -> Hardware:
        return self.hardware


class Stopped(SystemClock):
    """A clock that goes on when it is told to."""

    at = 0.0

    def monotonic(self) -> float:
        return self.at


def chosen(scale: Scale, wanted: str = "llama2:7b") -> LastResort:
    settings = Settings(local=LocalSettings(last_resort=wanted))
    return LastResort(settings, scale, Stopped())  # type: ignore[arg-type]


def test_the_default_stands_where_it_fits() -> None:
    choice = chosen(Scale(32 * GB))()
    assert (choice.name, choice.requested) == ("llama2:7b", "")


@pytest.mark.parametrize("scale", [Scale(4 * GB), Scale(32 * GB, disk=5 * GB)])
def test_where_it_does_not_the_best_that_does_is_taken_and_both_are_named(scale: Scale) -> None:
    choice = chosen(scale)()
    assert choice.name and choice.name != "llama2:7b"
    assert choice.requested == "llama2:7b"
    assert "`llama2:7b` does not fit" in choice.reason
    assert f"`{choice.name}` is the best that fits" in choice.reason


def test_auto_takes_the_best_of_bearable_size_and_stands_in_for_nothing() -> None:
    choice = chosen(Scale(32 * GB), "auto")()
    entry = recommend.catalogue().find(choice.name)
    assert entry is not None and entry.size_bytes <= recommend.LAST_RESORT_BYTES
    assert choice.requested == "" and "best that fits" in choice.reason


def test_nothing_is_chosen_where_nothing_fits() -> None:
    choice = chosen(Scale(GB // 4))()
    assert choice.name == "" and "does not fit" in choice.reason


def test_a_choice_stands_for_a_minute() -> None:
    scale = Scale(32 * GB)
    resort = chosen(scale)
    assert resort().name == "llama2:7b"
    scale.hardware = Scale(4 * GB).hardware
    assert resort().name == "llama2:7b"
    resort._clock.at = CHOSEN_S + 1  # type: ignore[attr-defined]
    assert resort().name != "llama2:7b"
