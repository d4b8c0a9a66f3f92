"""What a name means, who would be asked for it, and why not the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from localfirst.cascade import plan_names, plan_text
from localfirst.cascade.health import NEVER, Health
from localfirst.cascade.plan import ProviderView, StepState, World, plan
from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.errors import ContextTooLong, InvalidRequest, PrivacyRefused, UnknownModel
from localfirst.settings import RouteSettings
from localfirst.types import Failure, FailureClass, Needs, Rung, Scope, Target
from tests.fakes.scripted_backend import TINY, engine, make_call, view

LLAMA = LocalModel(name="llama3.2:3b", size_bytes=2_000_000_000, fit="fits", context_tokens=8192,
                   capabilities=("completion", "tools"))  # fmt: skip
EYES = LocalModel(name="llava:7b", size_bytes=4_000_000_000, fit="tight",
                  capabilities=("completion", "vision"))  # fmt: skip
EMBED = LocalModel(name="nomic-embed-text:latest", fit="fits", capabilities=("embedding",))
CLOUD = LocalModel(name="gpt-oss:120b-cloud", fit="fits", remote=True)

PROVIDERS = {
    "groq": view("groq", default_models=("openai/gpt-oss-20b", "llama-3.1-8b-instant")),
    "openai": view("openai", default_models=("gpt-5-mini",), known_models=frozenset({"gpt-5"})),
    "anthropic": ProviderView(id="anthropic", enabled=False, reason="no key"),
}


def world(**rest: Any) -> World:
    rest.setdefault("order", ("local", "groq", "openai", "anthropic", "pull"))
    rest.setdefault("providers", PROVIDERS)
    rest.setdefault("local", engine(LLAMA, EMBED))
    return World(**rest)


def ready(model: str = "auto", call: dict[str, Any] | None = None, **rest: Any) -> list[str]:
    """The routes that would be asked, in order; alternates left out."""
    found = plan(make_call(model, **(call or {})), world(**rest))
    return [step.target.route for step in found.ready if not step.alternate]


def why(provider: str, model: str = "auto", **rest: Any) -> str:
    call = rest.pop("call", {})
    found = plan(make_call(model, **call), world(**rest))
    return next(step.reason for step in found.steps if step.target.provider == provider)


NAMES = [
    ("auto", ["local/llama3.2:3b", "groq/openai/gpt-oss-20b", "openai/gpt-5-mini",
              "pull/llama2:7b"]),
    ("", ["local/llama3.2:3b", "groq/openai/gpt-oss-20b", "openai/gpt-5-mini", "pull/llama2:7b"]),
    ("local", ["local/llama3.2:3b"]),
    ("local/llama3.2:3b", ["local/llama3.2:3b"]),
    ("ollama/llama3.2:3b", ["local/llama3.2:3b"]),
    ("llama3.2:3b", ["local/llama3.2:3b", "groq/openai/gpt-oss-20b", "openai/gpt-5-mini"]),
    ("qwen3:4b", ["groq/openai/gpt-oss-20b", "openai/gpt-5-mini", "pull/qwen3:4b"]),
    ("tinyllama", ["groq/openai/gpt-oss-20b", "openai/gpt-5-mini", "pull/tinyllama"]),
    ("groq/openai/gpt-oss-20b", ["groq/openai/gpt-oss-20b"]),
    ("groq/anything", ["groq/anything"]),
    ("gpt-5", ["local/llama3.2:3b", "groq/openai/gpt-oss-20b", "openai/gpt-5", "pull/llama2:7b"]),
    ("fast", ["openai/gpt-5", "local/llama3.2:3b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "routes"), NAMES, ids=[name or "none" for name, _ in NAMES])
def test_a_name_asks_who_it_says(name: str, routes: list[str]) -> None:
    routing = {"fast": RouteSettings(targets=("openai/gpt-5", "local/llama3.2:3b"))}
    assert ready(name, routes=routing) == routes


def test_a_stand_in_says_what_it_stands_in_for() -> None:
    found = plan(make_call("qwen3:4b"), world())
    told = {step.target.provider: step.target.requested for step in found.ready}
    assert told == {"groq": "qwen3:4b", "openai": "qwen3:4b", "pull": ""}
    found = plan(make_call("gpt-5"), world())
    told = {step.target.provider: step.target.requested for step in found.ready}
    assert told == {"local": "gpt-5", "groq": "gpt-5", "openai": "", "pull": "gpt-5"}


@pytest.mark.parametrize("name", ["llama3.2:3b", "some-model"])
def test_whoever_has_the_very_model_is_asked_for_it_and_not_for_a_stand_in(name: str) -> None:
    """Installed here or not, and by every cloud that lists it, not by the first alone."""
    having = {
        one: view(one, known_models=frozenset({name, f"{one}-model"})) for one in ("box", "groq")
    }
    found = plan(make_call(name), world(order=("box", "local", "groq"), providers=having))
    clouds = [step.target for step in found.ready if step.target.rung is Rung.CLOUD]
    assert [(one.provider, one.model, one.requested) for one in clouds] == [
        ("box", name, ""),
        ("groq", name, ""),
    ]


def test_a_name_of_a_clouds_making_is_asked_there_although_no_list_has_it() -> None:
    assert ready("gpt-99", order=("groq", "openai")) == [
        "groq/openai/gpt-oss-20b",
        "openai/gpt-99",
    ]


def test_a_provider_that_cannot_be_asked_says_what_to_set() -> None:
    odd = {"box": view("box", default_models=()), "new": ProviderView(id="new", enabled=False)}
    assert "`providers.box.model`" in why("box", order=("box",), providers=odd)
    assert why("new", order=("new",), providers=odd) == "it is not configured"


def test_an_unknown_name_is_404_with_the_nearest() -> None:
    found = plan(make_call("llama3.2:3b".replace(":3b", "x")), world())
    assert isinstance(found.error, UnknownModel)
    assert found.error.http_status == 404
    assert "llama3.2:3b" in found.error.nearest or "llama3.2" in found.error.nearest


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b", "x" * 500, "gpt\r\nx: y", "nosuch"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert isinstance(plan(make_call(name), world()).error, UnknownModel)


def test_every_rung_of_the_order_has_a_step_with_a_reason() -> None:
    found = plan(make_call(), world(order=("local", "nobody", "anthropic", "pull")))
    assert [step.target.provider for step in found.steps] == [
        "local",
        "nobody",
        "anthropic",
        "pull",
    ]
    assert all(step.reason for step in found.steps)
    assert why("anthropic") == "no key"
    assert "no provider `nobody`" in why("nobody", order=("nobody",))
    assert len(plan_text.lines(found, 0.0)) == 4


def test_the_local_rung_takes_a_loaded_model_then_the_largest_that_fits() -> None:
    small = TINY
    assert ready("local", local=engine(small, LLAMA)) == ["local/llama3.2:3b"]
    loaded = msgspec.structs.replace(small, loaded=True)
    assert ready("local", local=engine(loaded, LLAMA)) == ["local/tiny:latest"]
    assert ready("local", local=engine(small, LLAMA), local_model="tiny") == ["local/tiny:latest"]


def test_the_local_rung_needs_what_the_request_needs() -> None:
    eyes = {"needs": Needs(vision=True)}
    assert ready("local", eyes) == []
    assert "vision" in why("local", call=eyes)
    assert ready("local", eyes, local=engine(LLAMA, EYES)) == ["local/llava:7b"]
    assert "window" in why("local", call={"needs": Needs(prompt_tokens=9000)})
    assert why("local", local=engine(EMBED)) == "no installed model fits this machine"
    assert why("local", local=engine()) == "no model is installed"


def test_a_model_that_does_not_fit_is_only_taken_by_name() -> None:
    giant = LocalModel(name="giant:70b", fit="no")
    assert ready("local", local=engine(giant)) == []
    assert ready("local/giant:70b", local=engine(giant)) == ["local/giant:70b"]


def test_local_only_refuses_clouds_remote_models_and_downloads() -> None:
    local = engine(CLOUD)
    assert ready(local_only=True, local=local) == []
    assert ready("gpt-oss:120b-cloud", {"local_only": True}, local=local) == []
    assert ready("gpt-oss:120b-cloud", local=local)[0] == "local/gpt-oss:120b-cloud"
    assert isinstance(plan(make_call("groq/x", local_only=True), world()).error, PrivacyRefused)
    box = {"box": view("box", near=True, own=True)}
    assert ready(order=("box",), providers=box, local_only=True) == ["box/box-model"]
    assert ready("box/any", providers=box, local_only=True) == ["box/any"]
    assert plan(make_call("box/any"), world(providers=box, local_only=True)).error is None
    assert isinstance(plan(make_call("groq/x"), world(local_only=True)).error, PrivacyRefused)
    proxy = {"box": view("box", near=True)}
    assert ready(order=("box",), providers=proxy, local_only=True) == []
    # A cloud's model and a download are left out, not refused: this machine may stand in.
    found = plan(make_call("gpt-5"), world(local_only=True))
    assert found.error is None and found.ready[0].target.route == "local/llama3.2:3b"
    assert plan(make_call("pull/tinyllama", local_only=True), world()).error is None
    assert ready(order=("box",), providers=proxy, online=False) == ["box/box-model"]


def test_offline_skips_clouds_and_downloads_at_once() -> None:
    assert ready(online=False) == ["local/llama3.2:3b"]
    assert ready("127.0.0.1:5000/library/tiny", online=False) == [
        "pull/127.0.0.1:5000/library/tiny"
    ]


def test_the_pull_rung_says_why_it_is_skipped() -> None:
    none = EngineStatus(kind="none", state="absent", ready=False, reason="not installed")
    assert why("pull", skip_pull=True, skip_pull_reason="AWS Lambda") == "AWS Lambda"
    assert "auto_pull" in why("pull", auto_pull=False)
    assert "nothing here could run it" in why("pull", local=none)
    assert "already installed" in why("pull", last_resort="llama3.2:3b")
    assert "local-only" in why("pull", local_only=True)


def test_a_last_resort_that_does_not_fit_gives_way_and_says_so() -> None:
    stand_in = {
        "local": EngineStatus(kind="llamacpp", state="ready", ready=True),
        "last_resort": "small:1b",
        "last_resort_for": "llama2:7b",
        "last_resort_reason": "`llama2:7b` does not fit",
    }
    found = plan(make_call(), world(**stand_in))
    step = next(step for step in found.steps if step.target.rung is Rung.PULL)
    assert (step.target.model, step.target.requested) == ("small:1b", "llama2:7b")
    assert "does not fit" in step.reason
    # Whoever asks for a model by name gets that one.
    named = plan(make_call("other:3b"), world(**stand_in))
    assert any(step.target.route == "pull/other:3b" for step in named.steps)


def test_a_spent_budget_closes_the_clouds() -> None:
    assert ready(over_budget="spent") == ["local/llama3.2:3b", "pull/llama2:7b"]
    # A server of one's own costs nothing that a budget counts.
    box = {"box": view("box", own=True)}
    assert ready(order=("box",), providers=box, over_budget="spent") == ["box/box-model"]


def test_a_prompt_goes_to_whoever_has_just_the_room_for_it() -> None:
    long = {"needs": Needs(prompt_tokens=8000)}
    sizes = {name: view(name, context_tokens=size)
             for name, size in (("less", 7999), ("just", 8000), ("unknown", 0))}  # fmt: skip
    order = ("less", "just", "unknown")
    found = plan(make_call(**long), world(order=order, providers=sizes))
    assert [step.target.provider for step in found.ready] == ["just", "unknown"]
    assert found.steps[0].reason == "about 8000 tokens do not fit its window of 7999"
    # What fits everybody, of those too that are not asked now; nobody knows of the unknown.
    assert found.fits_tokens == 7999
    alone = plan(make_call(**long), world(order=("unknown",), providers=sizes, local=engine()))
    assert alone.fits_tokens == NEVER
    assert plan(make_call(), world(local=engine(LLAMA))).fits_tokens == 8192


def test_a_rung_that_is_named_twice_is_one() -> None:
    found = plan(make_call(), world(order=("ollama", "groq", "local", "groq")))
    rungs = [step.target.provider for step in found.steps if not step.alternate]
    assert rungs == ["local", "groq"]


def test_fallback_off_leaves_one_step() -> None:
    assert ready("auto", {"fallback": False}) == ["local/llama3.2:3b"]
    assert ready(fallback=False) == ["local/llama3.2:3b"]


def test_a_cooling_candidate_keeps_its_place_and_says_until_when() -> None:
    health = Health()
    target = Target(rung=Rung.CLOUD, provider="groq", model="m")
    failure = Failure(cls=FailureClass.TIMEOUT, scope=Scope.PROVIDER)
    health.failed(target, failure, 100.0)
    found = plan(make_call(), world(health=health.view(), now_unix=101.0))
    step = found.steps[1]
    assert (step.state, step.ready_at_unix) == (StepState.COOLING, 130.0)
    assert found.until_unix == 115.0  # when a single request may try early


STRATEGIES = [
    ("order", ["openai/a", "groq/b", "local/llama3.2:3b"]),
    ("cheapest", ["local/llama3.2:3b", "groq/b", "openai/a"]),
    ("fastest", ["local/llama3.2:3b", "groq/b", "openai/a"]),
    ("balance", ["groq/b", "local/llama3.2:3b", "openai/a"]),
    ("cloud_first", ["openai/a", "groq/b", "local/llama3.2:3b"]),
]


@pytest.mark.parametrize(("strategy", "routes"), STRATEGIES)
def test_a_route_is_ordered_by_its_strategy(strategy: str, routes: list[str]) -> None:
    targets = ("openai/a", "groq/b", "local/llama3.2:3b")
    route = RouteSettings(targets=targets, strategy=strategy, weights=(1.0, 4.0, 1.0))
    found = ready(
        "mine",
        routes={"mine": route},
        priced={"openai/a": 5.0, "groq/b": 0.5},
        first_token_s={"openai/a": 2.0, "groq/b": 0.5},
        in_flight={"groq": 1, "openai": 1},
    )
    assert found == routes


@pytest.mark.parametrize("target", ["loop", "auto", "local", "gpt-5", "tinyllama", "nosuch/model"])
def test_a_route_leads_to_its_providers_alone_and_says_what_is_none(target: str) -> None:
    """Into itself it would never end, and a bare name would open the whole ladder."""
    routes = {"loop": RouteSettings(targets=(target, "groq/x"))}
    assert ready("loop", routes=routes) == ["groq/x"]
    first = plan(make_call("loop"), world(routes=routes)).steps[0]
    assert first.reason == f"`{target}` is no `provider/model`"


@pytest.mark.parametrize(
    ("one", "other"),
    [("llama2", "llama2:latest"), ("library/llama2", "llama2"), ("Llama2:7B", "llama2:7b"),
     ("registry.ollama.ai/library/llama2:7b", "llama2:7b")],
)  # fmt: skip
def test_two_spellings_are_one_model(one: str, other: str) -> None:
    assert plan_names.canonical(one) == plan_names.canonical(other)


@pytest.mark.parametrize(
    ("fit", "words"), [("fits", "and it fits"), ("tight", "barely fits"), ("unknown", "not known")]
)
def test_whether_the_chosen_model_fits_is_told_as_it_is(fit: str, words: str) -> None:
    model = msgspec.structs.replace(LLAMA, fit=fit)
    assert words in why("local", local=engine(model))
    loaded = msgspec.structs.replace(model, loaded=True)
    assert why("local", local=engine(loaded)) == "loaded"


# --- what nobody could ever answer -----------------------------------------------------------

TOOLS = {"needs": Needs(tools=True)}
BLIND = view("groq", capabilities=frozenset({"tools"}))
ALONE: dict[str, Any] = {"order": ("local",), "local": engine(TINY)}
DOWN = EngineStatus(kind="ollama", state="stopped", ready=False, reason="not running")
NONE = EngineStatus(kind="none", state="absent", ready=False, reason="not installed")


def error(call: dict[str, Any], model: str = "auto", /, **rest: Any) -> Any:
    return plan(make_call(model, **call), world(**rest)).error


def test_tools_that_no_candidate_has_are_the_requests_fault() -> None:
    found = error(TOOLS, **ALONE)
    assert isinstance(found, InvalidRequest)
    assert (found.http_status, found.code, found.field) == (400, "ability-missing", "tools")
    assert found.message == "`tiny:latest` does not support tools"


def test_everybody_who_lacks_it_is_told_of() -> None:
    eyes = {"needs": Needs(vision=True)}
    found = error(eyes, order=("local", "groq", "anthropic"), providers={"groq": BLIND})
    assert found.message == "`llama3.2:3b` does not support vision; `groq` does not support vision"


def test_a_model_that_only_embeds_cannot_be_asked_to_chat() -> None:
    found = error({}, "local/nomic-embed-text")
    assert (found.http_status, found.field) == (400, "model")
    assert found.message == "`nomic-embed-text:latest` does not support chat"


@pytest.mark.parametrize(
    "rest",
    [
        {"local": DOWN},
        {"order": ("local", "pull"), "online": False},
        {"order": ("groq", "openai"), "online": False},
        {"order": ("groq", "openai"), "over_budget": "spent"},
        {"local": engine(TINY, LocalModel(name="giant", fit="no"))},
        {"local": msgspec.structs.replace(engine(TINY), partial=True)},
        {"local": EngineStatus(kind="none", state="starting", ready=False, can_start=True)},
    ],
    ids=[
        "engine down",
        "offline pull",
        "offline cloud",
        "spent",
        "no room",
        "host down",
        "looking",
    ],
)
def test_what_somebody_might_do_later_is_not_the_requests_fault(rest: dict[str, Any]) -> None:
    known = {"groq": view("groq", capabilities=frozenset({"vision"})), "openai": view("openai")}
    asked = ALONE | {"order": ("local", "groq")} | rest
    assert error(TOOLS, providers=known, **asked) is None
    assert ready("auto", TOOLS, providers=known, **asked) == []


def test_who_is_no_candidate_does_not_make_it_uncertain() -> None:
    shut = {"groq": BLIND, "anthropic": PROVIDERS["anthropic"]}
    order = ("local", "nobody", "groq", "anthropic", "pull")
    eyes = {"needs": Needs(vision=True)}
    rest: dict[str, Any] = {"order": order, "providers": shut, "local": NONE, "auto_pull": False}
    assert error(eyes, **rest).message == "`groq` does not support vision"
    assert error(eyes, **rest, local_only=True) is None  # nobody at all: not the request's fault


def test_a_cooling_candidate_that_has_it_keeps_it_a_503() -> None:
    health = Health()
    target = Target(rung=Rung.CLOUD, provider="openai", model="openai-model")
    health.failed(target, Failure(cls=FailureClass.TIMEOUT, scope=Scope.PROVIDER), 100.0)
    known = {"openai": view("openai", capabilities=frozenset({"tools"}))}
    asked = ALONE | {"order": ("local", "openai"), "health": health.view(), "now_unix": 101.0}
    assert error(TOOLS, providers=known, **asked) is None


def test_a_prompt_that_is_longer_than_every_window_is_413() -> None:
    long = {"needs": Needs(prompt_tokens=9000)}
    small = {"groq": view("groq", context_tokens=8000)}
    found = error(long, order=("local", "groq"), providers=small)
    assert isinstance(found, ContextTooLong)
    assert found.http_status == 413
    # Where one lacks the tools and another the window, a shorter prompt would do.
    mixed = {"needs": Needs(prompt_tokens=9000, tools=True)}
    asked: dict[str, Any] = ALONE | {"order": ("local", "groq"), "providers": small}
    assert isinstance(error(mixed, **asked), ContextTooLong)


def test_a_model_that_may_do_more_than_is_listed_is_asked_after_those_that_surely_can() -> None:
    vague = LocalModel(name="vague", size_bytes=9_000_000_000, fit="fits", partial=True,
                       capabilities=("completion",))  # fmt: skip
    assert ready("auto", TOOLS, order=("local",), local=engine(vague)) == ["local/vague"]
    assert ready("auto", TOOLS, order=("local",), local=engine(vague, LLAMA)) == [
        "local/llama3.2:3b"
    ]
    assert ready("auto", order=("local",), local=engine(vague, LLAMA)) == ["local/vague"]


def test_nothing_is_downloaded_that_could_only_refuse() -> None:
    known = {"llama2:7b": frozenset({"completion"}), "qwen3:4b": frozenset({"completion", "tools"})}
    alone: dict[str, Any] = ALONE | {"order": ("local", "pull"), "abilities": known}
    assert ready("auto", {}, **alone)[-1] == "pull/llama2:7b"
    found = error(TOOLS, **alone)
    assert found.http_status == 400
    assert found.message.endswith("`llama2:7b` does not support tools")
    # One that can, or of which nothing is known, is still fetched.
    assert ready("qwen3:4b", TOOLS, **alone)[-1] == "pull/qwen3:4b"
    assert ready("mine:1b", TOOLS, **alone)[-1] == "pull/mine:1b"


def test_nothing_is_downloaded_for_a_prompt_that_its_window_does_not_hold() -> None:
    alone: dict[str, Any] = {
        "order": ("local", "pull"),
        "local": engine(),
        "windows": {"llama2:7b": 4096, "qwen3:4b": 262_144},
    }
    long = {"needs": Needs(prompt_tokens=5000)}
    found = error(long, **alone)
    assert isinstance(found, ContextTooLong) and found.http_status == 413
    assert found.message == "about 5000 tokens do not fit the window of 4096 of `llama2:7b`"
    # A shorter one, a larger window, or one that nobody knows.
    short = plan(make_call(needs=Needs(prompt_tokens=4000)), world(**alone))
    assert short.ready[-1].target.route == "pull/llama2:7b"
    assert short.fits_tokens == 4096, "no longer prompt may go by this plan"
    assert ready("qwen3:4b", long, **alone)[-1] == "pull/qwen3:4b"
    assert ready("mine:1b", long, **alone)[-1] == "pull/mine:1b"
    # Whoever was refused must not keep shorter prompts from it.
    assert plan(make_call(**long), world(**alone)).fits_tokens == 4096
