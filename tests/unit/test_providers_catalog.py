"""The catalogue's data holds together, and the settings make of it what people expect."""

from __future__ import annotations

import re

import pytest

from localfirst.config.load import load
from localfirst.config.table import PROVIDER_VARIABLES
from localfirst.errors import ConfigError
from localfirst.providers.address import check_base_url, is_private
from localfirst.providers.catalog import CATALOG, State, configured
from localfirst.providers.spec import merge
from localfirst.settings import ORDER, ProviderSettings, Secret, Settings
from localfirst.types import Dialect, Rung
from localfirst.wire.quirks import NONE, Quirks

REAL = "gsk_0a1B2c3D4e5F6g7H"


def only(name: str, **given: object) -> Settings:
    return Settings(providers={name: ProviderSettings(**given)})  # type: ignore[arg-type]


def key(value: str = REAL, label: str = "KEY") -> tuple[Secret, ...]:
    return (Secret(value, label),)


def test_every_rung_of_the_default_order_is_in_the_catalogue() -> None:
    assert set(ORDER) - {"local", "pull"} <= set(CATALOG)


def test_sixteen_clouds_and_their_variables_are_known_to_the_settings() -> None:
    assert {name: spec.key_vars for name, spec in CATALOG.items()} == PROVIDER_VARIABLES
    assert len(CATALOG) == 16


@pytest.mark.parametrize("name", CATALOG)
def test_an_entry_is_complete(name: str) -> None:
    spec = CATALOG[name]
    assert spec.id == name and spec.title and spec.docs.startswith("https://")
    assert spec.base_url.startswith("https://") and not spec.base_url.endswith("/")
    assert spec.models.fast and len(set(spec.models.all)) == len(spec.models.all)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", spec.dated)
    assert spec.context_tokens >= 8192
    assert spec.capabilities <= {"tools", "vision", "schema", "thinking"}
    assert all(re.compile(pattern) for pattern, _ in spec.model_quirks)
    assert not spec.quirks.drop & {"model", "messages", "stream", "tools", "response_format"}


def test_only_anthropic_speaks_its_own_dialect() -> None:
    others = {name for name, spec in CATALOG.items() if spec.dialect is not Dialect.OPENAI}
    assert others == {"anthropic"}


def test_without_settings_every_cloud_says_which_variable_it_wants() -> None:
    found = configured(Settings())
    assert {provider.state for provider in found.values()} == {State.NO_KEY}
    assert found["groq"].reason == "set GROQ_API_KEY"


def test_a_key_in_the_environment_is_enough() -> None:
    settings = load(environ={"GROQ_API_KEY": f"{REAL},{REAL}2", "HOME": "/nowhere"}).settings
    groq = configured(settings)["groq"]
    assert groq.ready
    assert groq.key_labels == ("GROQ_API_KEY#1", "GROQ_API_KEY#2")
    assert REAL not in repr(groq)


def test_a_placeholder_is_named_and_never_used() -> None:
    given = (Secret("gsk_xxxxxxxx", "GROQ_API_KEY"), Secret(REAL, "GROQ_API_KEY_2"))
    assert configured(only("groq", keys=given))["groq"].key_labels == ("GROQ_API_KEY_2",)
    provider = configured(only("groq", keys=given[:1]))["groq"]
    assert provider.state is State.PLACEHOLDER
    assert "GROQ_API_KEY" in provider.reason and "xxxx" not in provider.reason


def test_a_loopback_address_needs_no_key() -> None:
    provider = configured(only("deepseek", base_url="http://localhost:7100"))["deepseek"]
    assert provider.ready and provider.loopback and provider.rung is Rung.CLOUD
    assert provider.base_url == "http://localhost:7100"


def test_a_server_only_the_user_knows_needs_an_address_and_nothing_else() -> None:
    box = configured(only("mybox", base_url="http://192.168.1.5:8000/v1/", model="qwen"))["mybox"]
    assert box.ready and box.custom and not box.loopback
    assert (box.base_url, box.default_models) == ("http://192.168.1.5:8000/v1", ("qwen",))
    assert box.dialect is Dialect.OPENAI
    with pytest.raises(ConfigError, match="base_url"):
        configured(only("mybox"))


def test_a_server_can_count_as_this_machines_own() -> None:
    box = configured(only("lmstudio", base_url="http://127.0.0.1:1234/v1", rung="local"))
    assert box["lmstudio"].rung is Rung.LOCAL


def test_a_users_model_goes_first_and_its_window_is_not_guessed() -> None:
    provider = configured(only("openai", keys=key(), model="gpt-custom"))["openai"]
    assert provider.default_models[0] == "gpt-custom"
    assert provider.context_tokens == 0 and provider.capabilities == frozenset()
    known = configured(only("openai", keys=key(), model="gpt-4o-mini"))["openai"]
    assert known.context_tokens == 128_000
    assert known.default_models.count("gpt-4o-mini") == 1


def test_cloudflare_wants_an_account() -> None:
    provider = configured(only("cloudflare", keys=key()))["cloudflare"]
    assert (provider.state, provider.reason) == (State.NO_ACCOUNT, "set CLOUDFLARE_ACCOUNT_ID")
    provider = configured(only("cloudflare", keys=key(), account="abc"))["cloudflare"]
    assert provider.ready and "/accounts/abc/ai/v1" in provider.base_url


def test_a_disabled_provider_says_so() -> None:
    provider = configured(only("groq", keys=key(), enabled=False))["groq"]
    assert provider.state is State.DISABLED and not provider.ready


def test_limits_come_from_the_settings_before_the_catalogue() -> None:
    assert configured(Settings())["huggingface"].concurrency == 3
    assert configured(only("huggingface", concurrency=9))["huggingface"].concurrency == 9
    assert configured(Settings())["nvidia"].timeout_s == 180
    assert configured(only("nvidia", timeout_s=5.0))["nvidia"].timeout_s == 5


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v1", "http://8.8.8.8/v1", "http://169.254.169.254/latest",
        "https://user:pw@example.com/v1", "https://example.com/v1#x", "https://example.com/v1?a=b",
        "ftp://example.com", "example.com/v1", "https://", "https://exa mple.com",
        "https://example.com:99999/", "http://[::", "file:///etc/passwd", "http://0.0.0.0/v1",
        "https://example.com\\@evil", "http://127.0.0.1.evil.example/v1", "https://exämple.com",
    ],
)  # fmt: skip
def test_an_address_that_would_leak_or_mislead_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_base_url("mybox", url)
    assert caught.value.setting == "providers.mybox.base_url"
    assert "pw" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/v1", "http://localhost:1234/v1", "http://127.0.0.1:8080",
        "http://[::1]:8080/v1", "http://192.168.1.5:8000/v1", "http://10.1.2.3/v1",
        "http://vllm:8000/v1", "http://host.docker.internal:11434/v1", "http://nas.local/v1",
        "http://[fd00::5]/v1",
    ],
)  # fmt: skip
def test_https_anywhere_and_http_where_nobody_listens_in_are_accepted(url: str) -> None:
    assert check_base_url("mybox", url + "/") == url


def test_the_metadata_address_is_not_private() -> None:
    assert not is_private("169.254.169.254")


def test_quirks_of_a_model_lie_over_those_of_its_provider() -> None:
    openai = configured(Settings())["openai"]
    assert "temperature" in openai.quirks("gpt-6-luna").drop
    assert openai.quirks("gpt-6-luna").with_tools == {"reasoning_effort": "none"}
    assert "temperature" not in openai.quirks("gpt-4o-mini").drop
    assert openai.quirks("gpt-4o-mini").max_tokens_field == "max_completion_tokens"
    anthropic = configured(Settings())["anthropic"]
    assert {"temperature", "top_p", "top_k"} <= anthropic.quirks("claude-haiku-5-5").drop
    assert anthropic.quirks("claude-haiku-4-5-20251001").drop == {"top_p"}


def test_merging_joins_sets_and_maps_and_replaces_words() -> None:
    base = Quirks(drop=frozenset({"a"}), rename={"x": "y"}, json_schema=False)
    merged = merge(base, Quirks(drop=frozenset({"b"}), rename={"z": "w"}, max_tokens_field="m"))
    assert merged.drop == {"a", "b"} and merged.rename == {"x": "y", "z": "w"}
    assert merged.max_tokens_field == "m" and merged.json_schema is False
    assert merge(base, NONE) is base
