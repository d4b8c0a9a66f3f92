"""What attempts tell of the network, and whom its loss concerns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from localfirst.cascade import classify
from localfirst.cascade.plan_world import ProviderView
from localfirst.errors import Breakage, UpstreamBroken, UpstreamError, UpstreamRefused
from localfirst.ledger.db import Ledger
from localfirst.machine.connectivity import Connectivity
from localfirst.runtime.budget import Budget
from localfirst.runtime.clouds import Clouds
from localfirst.runtime.records import Records
from localfirst.settings import ProviderSettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient
from localfirst.types import Attempt

CLOCK = SystemClock()
KEY = Secret(label="K", value="sk-2f9c1d7be04a4c55b8e1")
PLACES = {
    "groq": ProviderSettings(keys=(KEY,)),
    "openai": ProviderSettings(keys=(KEY,)),
    "box": ProviderSettings(base_url="http://192.168.1.5:8000/v1", model="m"),
    "shed": ProviderSettings(base_url="http://shed.lan:8000/v1", model="m"),
}


def clouds(**more: bool) -> Clouds:
    settings = Settings(providers=PLACES, order=tuple(PLACES), **more)  # type: ignore[arg-type]
    return Clouds(settings, upstream=UpstreamClient(CLOCK), clock=CLOCK)


class House:
    """The records of a machine that has a way out, as far as its routing table says."""

    def __init__(self, folder: Path) -> None:
        self.network = Connectivity(CLOCK, route=lambda _: "192.168.1.7")
        ledger, known = Ledger(folder / "x.db", CLOCK), clouds()
        budget = Budget(Settings().budget, ledger, CLOCK, own=known.own)
        self._records = Records(ledger, self.network, known, budget)

    def failed(self, provider: str, error: UpstreamError) -> None:
        found = classify.failure(provider, error, model="m", now_unix=CLOCK.unix())
        self._records.record_attempt(
            Attempt(provider=provider, model="m", outcome=found.cls), breakage=found.breakage
        )

    def answered(self, provider: str) -> None:
        self._records.record_attempt(Attempt(provider=provider, model="m", outcome="ok"))


@pytest.mark.parametrize(
    "breakage", [Breakage.CONNECT_TIMEOUT, Breakage.DNS, Breakage.OFFLINE, Breakage.PROXY]
)
def test_two_clouds_that_nothing_leads_to_mean_that_the_network_is_gone(
    tmp_path: Path, breakage: Breakage
) -> None:
    house = House(tmp_path)
    house.failed("groq", UpstreamBroken(breakage))
    assert house.network.online() is True, "one dead cloud is not a dead network"
    house.failed("openai", UpstreamBroken(breakage))
    assert house.network.online() is False
    house.answered("openai")
    assert house.network.online() is True


@pytest.mark.parametrize(
    "error",
    [
        UpstreamBroken(Breakage.CONNECT_REFUSED), UpstreamBroken(Breakage.TLS),
        UpstreamBroken(Breakage.RESET), UpstreamBroken(Breakage.STALL_TIMEOUT),
        UpstreamRefused(503, b"{}"),
    ],
    ids=str,
)  # fmt: skip
def test_clouds_that_somebody_answered_for_leave_the_others_to_be_asked(
    tmp_path: Path, error: UpstreamError
) -> None:
    house = House(tmp_path)
    for provider in ("groq", "openai"):
        house.failed(provider, error)
    assert house.network.online() is True


def test_servers_in_the_house_that_are_off_say_nothing_of_the_internet(tmp_path: Path) -> None:
    house = House(tmp_path)
    for provider in ("box", "shed", "groq"):
        house.failed(provider, UpstreamBroken(Breakage.CONNECT_TIMEOUT))
    assert house.network.online() is True
    house.failed("openai", UpstreamBroken(Breakage.CONNECT_TIMEOUT))
    house.answered("box")
    assert house.network.online() is False, "nor does one that answers"


def test_servers_in_the_house_are_asked_while_the_internet_is_gone() -> None:
    def near(views: Mapping[str, ProviderView]) -> list[str]:
        return [name for name, view in views.items() if view.near]

    assert near(clouds().views) == ["box", "shed"]
    assert near(clouds(offline=True).views) == [], "where everything is said to be gone"
