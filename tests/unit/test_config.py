"""Settings: which layer wins, what is refused and how, and that no key is ever shown."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

import localfirst
from localfirst.config import PROVIDER_VARIABLES, SETTINGS, Loaded, load
from localfirst.config.table import PROVIDER_FIELDS, ROUTE_FIELDS
from localfirst.errors import ConfigError
from localfirst.providers.catalog import configured
from localfirst.settings import ORDER, Privacy, ProviderSettings, Secret, Settings

CANARY = "lf-canary-7f3a91"


def loaded(
    environ: Mapping[str, str] = {}, toml: str = "", tmp: Path | None = None, **more: object
) -> Loaded:
    """Load from a document and variables alone, with nothing of this machine's user."""
    base: dict[str, str] = {}
    if tmp is not None:
        (tmp / "config.toml").write_text(toml)
        base = {"LOCALFIRST_CONFIG": str(tmp / "config.toml")}
    return load(environ=base | dict(environ), cwd=tmp, **more)  # type: ignore[arg-type]


def test_defaults_are_the_structs_own_defaults(tmp_path: Path) -> None:
    settings = loaded(tmp=tmp_path).settings
    bare = Settings(state_dir=settings.state_dir)
    assert settings == bare
    assert settings.order == ORDER


def test_privacy_in_words_is_privacy(tmp_path: Path) -> None:
    """The class of its values is not exported: whoever builds settings by hand writes a word."""
    by_hand = Settings(privacy="local-only")  # type: ignore[arg-type]
    read = loaded({"LOCALFIRST_PRIVACY": "local-only"}, tmp=tmp_path).settings
    for settings in (by_hand, read, msgspec.structs.replace(by_hand, offline=True)):
        assert settings.privacy is Privacy.LOCAL_ONLY
    with pytest.raises(ConfigError, match="`allow-cloud` or `local-only`") as caught:
        Settings(privacy="local_only")  # type: ignore[arg-type]
    assert caught.value.setting == "privacy"


def test_a_client_of_settings_in_words_asks_no_cloud(tmp_path: Path) -> None:
    settings = Settings(
        privacy="local-only",  # type: ignore[arg-type]
        state_dir=str(tmp_path),
        order=("groq",),
        providers={"groq": ProviderSettings(keys=(Secret("gsk_1f6b0a9c2e7d4835b1c0d9e8", "K"),))},
    )
    with localfirst.Client(settings) as client:
        plan = client.explain("groq/llama-3.1-8b-instant")
    assert not plan.ready
    assert isinstance(plan.error, localfirst.PrivacyRefused)


def test_argument_beats_environment_beats_dotenv_beats_file(tmp_path: Path) -> None:
    home = tmp_path / "xdg" / "localfirst"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        "[gateway]\nport = 1\n[cascade]\ndeadline_s = 1\n[timeouts]\nload_s = 1\nstall_s = 1"
    )
    (tmp_path / ".env").write_text(
        "LOCALFIRST_GATEWAY_PORT=2\nLOCALFIRST_CASCADE_DEADLINE_S=2\nLOCALFIRST_TIMEOUTS_LOAD_S=2\n"
    )
    script = (
        "import json,pathlib,os\nfrom localfirst.config import load\n"
        "l = load(overrides={'gateway.port': 4}, cwd=pathlib.Path(os.environ['WHERE']))\n"
        "s = l.settings\n"
        "paths = ('gateway.port', 'cascade.deadline_s', 'timeouts.load_s')\n"
        "where = [l.sources[path].source.split()[0] for path in paths]\n"
        "print(json.dumps([s.gateway.port, s.cascade.deadline_s, s.timeouts.load_s,"
        " s.timeouts.stall_s, where]))"
    )
    import json
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
            "HOME": str(tmp_path),
            "WHERE": str(tmp_path),
            "LOCALFIRST_GATEWAY_PORT": "3",
            "LOCALFIRST_CASCADE_DEADLINE_S": "3",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert json.loads(done.stdout) == [4, 3.0, 2.0, 1.0, ["argument", "env", ".env"]]


def test_an_explicit_config_file_shuts_the_users_file_and_dotenv_out(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LOCALFIRST_GATEWAY_PORT=2\nGROQ_API_KEY=gsk_from_dotenv\n")
    result = loaded(tmp=tmp_path, toml="[cascade]\ndeadline_s = 7")
    assert (result.settings.gateway.port, result.settings.cascade.deadline_s) == (11435, 7.0)
    assert result.settings.providers == {}


@pytest.mark.parametrize(
    ("environ", "toml", "named"),
    [
        ({"LOCALFIRST_PRIVCY": "x"}, "", "LOCALFIRST_PRIVACY"),
        ({"LOCALFIRST_PRIVACY": "local"}, "", "`allow-cloud`, `local-only`"),
        ({"LOCALFIRST_GATEWAY_PORT": "99999"}, "", "at most 65535"),
        ({"LOCALFIRST_LOCAL_AUTO_PULL": "flase"}, "", "`true` or `false`"),
        ({"LOCALFIRST_CASCADE_DEADLINE_S": "nan"}, "", "a finite number"),
        ({"LOCALFIRST_PULL_LIMIT_RATE": "fast"}, "", "a size such as"),
        ({"LLM_FALLBACK_ORDER": "grok,local"}, "", "groq"),
        ({"LLM_FALLBACK_ORDER": "groq,groq"}, "", "at most once"),
        ({"LLM_DEFAULT_PROVIDER": "nobody"}, "", "LLM_DEFAULT_PROVIDER"),
        ({"OLLAMA_HOST": "ftp://x"}, "", "http://HOST:PORT"),
        ({"LOCALFIRST_LOCAL_HOSTS": "gpu1,gpu2:99999"}, "", "http://HOST:PORT"),
        ({}, "[local]\nhosts = ['http://u:p@[x']", "`local.hosts`"),
        ({"OLLAMA_HOST": "http://u:p@x"}, "", "http://HOST:PORT"),
        ({}, "privacyy = 'x'", "`privacy`"),
        ({}, "[gateway]\nprot = 1", "gateway.port"),
        ({}, "[providers.groq]\nmodle = 'x'", "`providers.groq.model`"),
        ({}, "[providers.mybox]\nmodel = 'x'", "providers.mybox.base_url"),
        ({}, "[providers.gorq]\nmodel = 'x'", "did you mean `groq`"),
        ({}, "[routes.fast]\ntargets = []", "routes.fast.targets"),
        ({}, "[routes.fast]\ntargets = ['local/x']\nstrategy = 'random'", "`cheapest`"),
        ({}, "[gateway]\nkeys = ['env:NOT_THERE']", "NOT_THERE"),
        ({}, "this is not toml", "TOML"),
        ({}, "[gatway]\nport = 1", "did you mean `gateway`?"),
        ({}, "gateway = 5", "`[gateway]`"),
        ({}, "providers = 5", "`[providers.groq]`"),
        ({}, "providers = ['groq']", "`[providers.groq]`"),
        ({}, "routes = 5", "`[routes.fast]`"),
        ({}, "[routes.fast]\ntarget = ['local/x']", "`routes.fast.targets`"),
        ({}, "[routes.fast]\ntargets = ['local/x']\nstrategy = 'x'", "`routes.fast.strategy`"),
        ({}, "[routes.fast]\ntargets = ['gorq/m']", "`groq/m`"),
        ({}, "[routes.fast]\ntargets = ['llama3.2:1b']", "in place of `llama3.2:1b`"),
        ({}, "[routes.fast]\ntargets = ['groq/']", "`provider/model`"),
        ({}, "[routes.fast]\ntargets = ['local/a b']", "routes.fast.targets"),
        ({}, "[local]\nlast_resort = 'bad name!!'", "`local.last_resort`"),
        ({"LOCALFIRST_LOCAL_LAST_RESORT": "../x"}, "", "a model's name such as `llama3.2:3b`"),
        ({"OLLAMA_MODEL": "llama3.2:3b,tiny"}, "", "`local.model` from env OLLAMA_MODEL"),
        ({}, "[routes.auto]\ntargets = ['groq/m']", "routes.auto"),
        ({}, "[routes.local]\ntargets = ['groq/m']", "routes.local"),
        ({}, "order = []", "at least one rung"),
        ({}, "[cascade]\nbackoff_s = [-1]", "at least 0"),
        ({}, "[pull]\nreserve_disk = -5", "a size such as"),
        (
            {},
            "[pull.mirrors]\n'registry.ollama.ai' = 'mirror'",
            "`registry.host=https://HOST/PATH`",
        ),
        ({"LOCALFIRST_PULL_MIRRORS": "a=b=c"}, "", "`registry.host=https://HOST/PATH`"),
        ({}, "[escalation]\nwebhook = 'slack'", "https://HOST/PATH"),
        ({}, "[escalation]\ntelegram = '123:abc'", "`TOKEN@CHAT`"),
        ({}, "[gateway]\norigins = ['https://a.example/app']", "`https://HOST` without a path"),
        ({}, "[gateway]\norigins = ['*']", "`https://HOST` without a path"),
        ({}, "[gateway]\norigins = ['https://b\u00fccher.example']", "`xn--…`"),
        ({}, "[gateway]\nhosts = ['*.example']", "`HOST` or `HOST:PORT`"),
        ({}, "[gateway]\nhosts = ['https://llm.example']", "`HOST` or `HOST:PORT`"),
        ({}, "[gateway]\nhosts = ['b\u00fccher.example']", "`xn--…`"),
        ({"LOCALFIRST_PROVIDERS_GROQ_MODLE": "x"}, "", "LOCALFIRST_PROVIDERS_GROQ_MODEL"),
    ],
)
def test_a_bad_setting_is_refused_by_name_with_the_accepted_form(
    environ: dict[str, str], toml: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(environ, toml, tmp_path)
    assert named in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_the_doors_names_are_kept_as_clients_send_them(tmp_path: Path) -> None:
    text = """[gateway]
    origins = ["HTTPS://App.Example:443/", "http://a.example:80", "https://b.example:8443", "null"]
    hosts = ["LLM.Example", "llm.example:8443", "2001:DB8::1", "[::1]:80"]
    """
    gateway = loaded(toml=text, tmp=tmp_path).settings.gateway
    assert gateway.origins == (
        *("https://app.example", "http://a.example", "https://b.example:8443"),
        "null",
    )
    assert gateway.hosts == ("llm.example", "llm.example:8443", "[2001:db8::1]", "[::1]:80")


@pytest.mark.parametrize(
    "name", ["auto", "tiny", "llama3.2:3b", "hf.co/org/Repo-GGUF:Q4_K_M", "127.0.0.1:5000/a/b:c"]
)
def test_every_name_of_a_model_can_be_configured(name: str, tmp_path: Path) -> None:
    text = f"[local]\nmodel = '{name}'\nlast_resort = '{name}'\n"
    settings = loaded(toml=text + f"[routes.fast]\ntargets = ['local/{name}']", tmp=tmp_path)
    assert settings.settings.local.model == settings.settings.local.last_resort == name
    assert settings.settings.routes["fast"].targets == (f"local/{name}",)


def test_a_missing_explicit_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LOCALFIRST_CONFIG"):
        load(environ={"LOCALFIRST_CONFIG": str(tmp_path / "none.toml")})


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a readable TOML file") as caught:
        load(environ={"LOCALFIRST_CONFIG": str(tmp_path)})
    assert caught.value.source == str(tmp_path)
    for text, told in (("#" * (2**20 + 1), "larger than 1 MiB"), ("a = " + "[" * 5000, "TOML")):
        with pytest.raises(ConfigError, match=told):
            loaded(toml=text, tmp=tmp_path)
    assert loaded(toml="#" * 2**20, tmp=tmp_path).settings.order == ORDER


def test_an_argument_that_is_no_setting_is_refused_like_a_misspelt_key() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `gateway\.port`") as caught:
        load(environ={}, overrides={"gateway.prot": 1})
    assert caught.value.source == "argument"
    given = load(environ={}, overrides={"gateway.port": 8080, "state_dir": "/s"})
    assert given.settings.gateway.port == 8080
    assert given.settings.state_dir == "/s"
    assert given.sources["gateway.port"].source == "argument"


def test_a_dotenv_is_read_where_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LOCALFIRST_GATEWAY_PORT=2\nOPENAI_API_KEY=\n")
    found = load(environ={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert found.settings.gateway.port == 2
    assert found.sources["gateway.port"].source == ".env LOCALFIRST_GATEWAY_PORT"
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert load(environ={"HOME": str(tmp_path)}, cwd=tmp_path).settings.gateway.port == 11435


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("# für alle\nGROQ_API_KEY=gsk_1\n".encode("latin-1"), id="Latin-1"),
        pytest.param("\ufeffGROQ_API_KEY=gsk_1\n".encode(), id="a byte order mark"),
        pytest.param("GROQ_API_KEY=gsk_1\r\n".encode("utf-16"), id="PowerShell's UTF-16"),
    ],
)
def test_a_dotenv_is_read_whatever_editor_wrote_it(data: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(data)
    found = load(environ={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert found.settings.providers["groq"].keys[0].reveal() == "gsk_1"


@pytest.mark.parametrize("value", ["9" * 400, "9" * 400 + " GB", 10**400])
@pytest.mark.parametrize("path", ["pull.reserve_disk", "cascade.cache_bytes"])
def test_a_size_beyond_every_number_is_a_wrong_setting(path: str, value: object) -> None:
    with pytest.raises(ConfigError, match=path):
        load(environ={}, overrides={path: value})


@pytest.mark.parametrize("path", ["gateway.port", "cascade.deadline_s"])
def test_a_number_beyond_every_float_is_a_wrong_setting(path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        load(environ={}, overrides={path: 10**400})


def test_a_secret_is_the_word_that_was_written_or_none(tmp_path: Path) -> None:
    def telegram(text: str) -> Secret | None:
        return loaded({"BOT": " 1:x@2 "}, f"[escalation]\n{text}", tmp_path) \
            .settings.escalation.telegram  # fmt: skip

    for written, label in (("'1:x@2'", "config.toml"), ("'env:BOT'", "BOT")):
        secret = telegram(f"telegram = {written}")
        assert secret is not None and secret.reveal() == "1:x@2"
        assert secret.label.endswith(label)
    assert telegram("") is None


def test_a_route_may_be_its_targets_alone_and_a_clouds_names_are_its_own(tmp_path: Path) -> None:
    text = "[routes]\nfast = ['groq/odd name!:x@1', 'local/tiny']\n"
    found = loaded(toml=text, tmp=tmp_path)
    assert found.settings.routes["fast"].targets == ("groq/odd name!:x@1", "local/tiny")
    assert "tiny" in found.sources["routes.fast.targets"].shown


def test_whoever_has_a_key_or_an_address_joins_the_ladder_in_its_place(tmp_path: Path) -> None:
    text = (
        "[providers.near]\nbase_url = 'http://127.0.0.1:1/v1'\nmodel = 'm'\nrung = 'local'\n"
        "[providers.far]\nbase_url = 'https://far.example/v1'\nmodel = 'm'\n"
        "[providers.cerebras]\nmodel = 'm'\n"
        "[providers.nvidia]\nkeys = ['env:NOT_SET']\n"
    )
    order = loaded(toml=text, tmp=tmp_path).settings.order
    assert order == ("local", "near", *ORDER[1:-1], "nvidia", "far", "pull")


@pytest.mark.parametrize("first", ["OLLAMA", " local "])
def test_a_default_provider_goes_first_by_any_of_its_names(first: str, tmp_path: Path) -> None:
    environ = {"LLM_DEFAULT_PROVIDER": first, "LLM_FALLBACK_ORDER": "groq,mybox,ollama"}
    text = "[providers.mybox]\nbase_url = 'https://far.example/v1'\nmodel = 'm'\n"
    order = loaded(environ, text, tmp_path).settings.order
    assert order == ("local", "groq", "mybox")


def test_several_keys_are_labelled_and_deduplicated(tmp_path: Path) -> None:
    keys = (
        loaded({"GROQ_API_KEY": "'gsk_a' ,gsk_b,gsk_a", "GROQ_API_KEY_2": "gsk_c\n"}, tmp=tmp_path)
        .settings.providers["groq"]
        .keys
    )
    assert [(key.label, key.reveal()) for key in keys] == [
        ("GROQ_API_KEY#1", "gsk_a"),
        ("GROQ_API_KEY#2", "gsk_b"),
        ("GROQ_API_KEY_2", "gsk_c"),
    ]


@pytest.mark.parametrize(
    ("environ", "written"),
    [({}, "keys = ['env:NOPE']"), ({"LOCALFIRST_PROVIDERS_GROQ_KEYS": "env:NOPE"}, "")],
)
@pytest.mark.parametrize("other", [{}, {"HELD": "gsk_a1b2c3d4e5"}], ids=["alone", "beside one"])
def test_a_variable_that_should_hold_a_key_and_does_not_is_told_and_stops_nobody_else(
    environ: dict[str, str], written: str, other: dict[str, str], tmp_path: Path
) -> None:
    if other:
        environ = {name: f"{value},env:HELD" for name, value in environ.items()} | other
        written = written.replace("]", ", 'env:HELD']")
    result = loaded(environ, f"[providers.groq]\n{written}", tmp_path)
    groq = configured(result.settings)["groq"]
    assert groq.wanting == "`providers.groq.keys` names `NOPE`, not set"
    assert groq.key_labels == tuple(other)
    assert (groq.ready, groq.reason) == ((True, "") if other else (False, groq.wanting))
    shown = result.sources["providers.groq.keys"].shown
    assert shown == ("set (HELD)" if other else "not set (NOPE)")


@pytest.mark.parametrize("provider", ["cerebras", "mine"])
def test_a_provider_whose_key_is_not_set_stays_in_sight(provider: str, tmp_path: Path) -> None:
    text = f"[providers.{provider}]\nkeys = ['env:NOPE']\nbase_url = 'http://127.0.0.1:9/v1'"
    settings = loaded(toml=text, tmp=tmp_path).settings
    assert provider in settings.order
    assert not configured(settings)[provider].ready


@pytest.mark.parametrize("provider", PROVIDER_VARIABLES)
def test_a_new_key_in_the_environment_is_enough_to_join_the_ladder(
    provider: str, tmp_path: Path
) -> None:
    for variable in PROVIDER_VARIABLES[provider]:
        settings = loaded({variable: "k-123456"}, tmp=tmp_path).settings
        assert provider in settings.order
        assert settings.order[-1] == "pull"
        assert settings.providers[provider].keys[0].label == variable


def test_a_written_order_is_the_whole_ladder(tmp_path: Path) -> None:
    settings = loaded(
        {"LLM_FALLBACK_ORDER": "groq, Ollama", "CEREBRAS_API_KEY": "k-1"}, tmp=tmp_path
    ).settings
    assert settings.order == ("groq", "local")


@pytest.mark.parametrize(
    "text", ["[routes.fast]\ntargets = ['local/x']", "[providers.groq]\nmodel = 'x'"]
)
def test_without_a_ladder_routes_and_providers_can_still_be_asked_by_name(
    text: str, tmp_path: Path
) -> None:
    assert loaded({}, f"order = []\n{text}", tmp=tmp_path).settings.order == ()


def test_the_default_provider_goes_first_and_fallback_can_be_switched_off(tmp_path: Path) -> None:
    settings = loaded(
        {"LLM_DEFAULT_PROVIDER": "mistral", "LLM_AUTO_FALLBACK": "false"}, tmp=tmp_path
    ).settings
    assert settings.order[:2] == ("mistral", "local")
    assert settings.cascade.fallback is False


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:4321", "http://127.0.0.1:4321"),
        ("[::]:4321", "http://[::1]:4321"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        (' "1.2.3.4" ', "http://1.2.3.4:11434"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("HTTPS://example.com/ollama", "https://example.com:443/ollama"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(written: str, url: str, tmp_path: Path) -> None:
    assert loaded({"OLLAMA_HOST": written}, tmp=tmp_path).settings.local.host == url


def test_keys_show_nowhere(tmp_path: Path) -> None:
    result = loaded(
        {"GROQ_API_KEY": CANARY, "LOCALFIRST_ESCALATION_TELEGRAM": f"{CANARY}@42"},
        f"[gateway]\nkeys = ['{CANARY}']\n[providers.openai]\nkeys = ['{CANARY}']",
        tmp_path,
    )
    shown = repr(result) + str(result.settings) + f"{result.settings.providers}"
    assert CANARY not in shown
    assert result.sources["gateway.keys"].shown == "set"
    assert result.sources["providers.openai.keys"].shown == "set (openai#1)"


def test_a_base_url_that_is_this_gateway_is_switched_off(tmp_path: Path) -> None:
    settings = loaded(
        {"OPENAI_BASE_URL": "http://localhost:11435/v1", "OPENAI_API_KEY": "sk-local"}, tmp=tmp_path
    ).settings
    openai = settings.providers["openai"]
    assert openai.enabled is False
    # Nobody has set `enabled`; to be told so sends people looking for it.
    assert "enabled" not in configured(settings)["openai"].reason
    assert "this gateway" in configured(settings)["openai"].reason


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]", "LOCALHOST"])
def test_every_spelling_of_loopback_is_this_gateway(host: str, tmp_path: Path) -> None:
    settings = loaded({"OPENAI_BASE_URL": f"http://{host}:11435/v1"}, tmp=tmp_path).settings
    assert settings.providers["openai"].enabled is False


def test_a_base_url_that_is_no_url_is_an_error_that_names_it(tmp_path: Path) -> None:
    settings = loaded({"OPENAI_BASE_URL": "http://[::1/v1"}, tmp=tmp_path).settings
    with pytest.raises(ConfigError, match=r"providers\.openai\.base_url"):
        configured(settings)


def test_what_is_shown_is_what_is_used(tmp_path: Path) -> None:
    """The ladder with its first rung and those that joined, the state's folder, the routes."""
    result = loaded(
        {"LLM_DEFAULT_PROVIDER": "groq", "LOCALFIRST_PULL_MIRRORS": "a.example=https://b.example"},
        "[providers.mine]\nbase_url = 'http://127.0.0.1:9/v1'\n"
        "[routes.fast]\ntargets = ['local/x', 'mine/y']\nstrategy = 'balance'\nweights = [1, 2]",
        tmp_path,
    )
    shown = {path: source.shown for path, source in result.sources.items()}
    assert shown["order"] == ",".join(result.settings.order)
    assert shown["order"].startswith("groq,local,") and "mine" in shown["order"]
    assert result.sources["order"].source == "default, env LLM_DEFAULT_PROVIDER"
    assert shown["state_dir"] == result.settings.state_dir != ""
    assert shown["pull.mirrors"] == "a.example=https://b.example"
    assert shown["routes.fast.targets"] == "local/x,mine/y"
    assert (shown["routes.fast.strategy"], shown["routes.fast.weights"]) == ("balance", "1,2")


def test_a_loopback_box_needs_only_an_address(tmp_path: Path) -> None:
    settings = loaded(
        {"DEEPSEEK_BASE_URL": "http://localhost:7100"},
        "[providers.mybox]\nbase_url = 'http://127.0.0.1:1234/v1'\nrung = 'local'",
        tmp_path,
    ).settings
    assert settings.providers["deepseek"].base_url == "http://localhost:7100"
    assert settings.order[:2] == ("local", "mybox")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.path)
def test_every_setting_can_be_set_by_its_own_variable(setting: object, tmp_path: Path) -> None:
    from localfirst.config.table import Setting

    assert isinstance(setting, Setting)
    samples = {
        "bool": "false",
        "int": "2",
        "float": "1",
        "floats": "1,2",
        "bytes": "3 MB",
        "rate": "1k",
    }
    samples |= {
        "mirrors": "registry.ollama.ai=http://127.0.0.1:1",
        "origins": "https://app.example",
        "url": "https://hooks.example/x",
        "secret": "123:abc@42",
    }
    sample = setting.choices[-1] if setting.choices else samples.get(setting.kind, "groq")
    if setting.kind == "int":
        sample = str(int(max(2, setting.least or 0)))
    result = loaded({setting.variable: sample}, tmp=tmp_path)
    assert result.sources[setting.path].source == f"env {setting.variable}"


def test_every_setting_is_used_by_somebody() -> None:
    """One that nobody reads would be a promise in the README, and nothing else."""
    package = Path(localfirst.__file__).parent
    used = {
        node.attr
        for path in package.rglob("*.py")
        if "config" not in path.relative_to(package).parts and path.name != "settings.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    fields = {setting.field or setting.path.rpartition(".")[2] for setting in SETTINGS}
    fields |= {setting.path for setting in (*PROVIDER_FIELDS, *ROUTE_FIELDS)}
    assert fields - used == set()
