"""How the runtime sees clouds: whose they are, which model stands in, what the ledger is told."""

from __future__ import annotations

from localfirst.config.table import PROVIDER_VARIABLES
from localfirst.providers.catalog import CATALOG
from localfirst.runtime.clouds import Clouds, mark
from localfirst.settings import ProviderSettings, Secret, Settings
from localfirst.transport.clock import SystemClock
from localfirst.transport.upstream import UpstreamClient

KEY = Secret("gsk_0123456789abcdefghij", "GROQ_API_KEY")


def clouds(**providers: ProviderSettings) -> Clouds:
    clock = SystemClock()
    return Clouds(Settings(providers=providers), upstream=UpstreamClient(clock), clock=clock)


def test_configuration_and_catalogue_know_the_same_providers_by_the_same_keys() -> None:
    assert {name: spec.key_vars for name, spec in CATALOG.items()} == PROVIDER_VARIABLES


def test_a_clouds_name_on_loopback_is_still_a_cloud_and_ones_own_box_is_not() -> None:
    url = "http://127.0.0.1:7100"
    found = clouds(
        groq=ProviderSettings(base_url=url),
        deepseek=ProviderSettings(base_url=url, rung="local"),
        mybox=ProviderSettings(base_url=url),
        lan=ProviderSettings(base_url="http://192.168.1.5:8000/v1", rung="local"),
        far=ProviderSettings(base_url="https://far.example.org/v1"),
    )
    assert found.own == {"deepseek", "mybox"}
    assert not found.views["groq"].own and found.views["groq"].near
    assert found.near == {"local", "deepseek", "lan"}
    assert found.hosts == {"far": "far.example.org:443"}, "of the internet"


def test_a_model_that_is_gone_steps_behind_the_next_default() -> None:
    found = clouds(groq=ProviderSettings(keys=(KEY,)))
    first, second, *_ = found.views["groq"].default_models
    found.gone("groq", first)
    assert found.views["groq"].default_models[0] == second
    assert first in found.views["groq"].reason


def test_marks_tell_configurations_apart_and_hold_no_key() -> None:
    one = clouds(groq=ProviderSettings(keys=(KEY,))).marks
    other = clouds(groq=ProviderSettings(keys=(Secret("gsk_another", KEY.label),))).marks
    assert one["GROQ_API_KEY"] != other["GROQ_API_KEY"]
    assert KEY.reveal() not in str(one)
    assert len(mark("x")) == 12
