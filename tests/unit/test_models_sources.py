"""Who is asked for a model's bytes: the mirror, its registry, or nobody."""

from __future__ import annotations

import pytest

from localfirst.errors import DigestMismatch, PullError, PullStalled, RegistryRefused
from localfirst.models import names, sources
from localfirst.models.sources import REST_S, Sources
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock

HOST = "registry.ollama.ai"
HOME = f"https://{HOST}"
MIRROR = "https://user:secret@mirror.example/ollama"


class HandClock(SystemClock):
    """A clock that is moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def made(mirror: str = MIRROR, *, host: str = HOST, local_only: bool = False) -> Sources:
    given = {host: mirror} if mirror else {}
    settings = PullSettings(mirrors=given, registries=(HOST,))
    return Sources(settings, clock=HandClock(), local_only=local_only)


def asked(of: Sources, name: str = "tiny", **how: object) -> tuple[str, ...]:
    return of.of(names.parse(name), **how)  # type: ignore[arg-type]


def test_the_mirror_is_asked_first_and_its_registry_after_it() -> None:
    assert asked(made("")) == (HOME,)
    assert asked(made(MIRROR + "/")) == (MIRROR, HOME)


@pytest.mark.parametrize(
    "error",
    [
        PullStalled("it stands"),
        PullError("nobody there", code="registry-unreachable"),
        RegistryRefused("busy", status=503),
        DigestMismatch("other bytes"),
    ],
)
def test_who_is_in_trouble_comes_last_for_a_minute(error: PullError) -> None:
    of = made()
    of.failed(MIRROR, error)
    assert asked(of) == (HOME, MIRROR)
    of._clock.now += REST_S  # type: ignore[attr-defined]
    assert asked(of) == (MIRROR, HOME)


def test_who_only_lacks_a_model_is_asked_first_again() -> None:
    of = made()
    of.failed(MIRROR, RegistryRefused("no such model", status=404))
    assert asked(of) == (MIRROR, HOME)


def test_who_brought_false_bytes_is_asked_again_only_where_nobody_else_is_left() -> None:
    assert asked(made(), without=frozenset({MIRROR})) == (HOME,)
    assert asked(made(), without=frozenset({MIRROR, HOME})) == (MIRROR, HOME)


def test_only_a_registry_that_may_be_asked_itself_stands_in_for_its_mirror() -> None:
    for of, name in (
        (made(local_only=True), "tiny"),
        (made(host="other.example"), "other.example/library/tiny"),
        (made(), f"http://{HOST}/library/tiny"),
    ):
        assert asked(of, name) == (MIRROR,)
        assert of.mirror(names.parse(name)) == ""
    # What runs here may be asked whatever the settings say.
    near = made(host="127.0.0.1:5000", local_only=True)
    name = "127.0.0.1:5000/library/tiny"
    assert asked(near, name) == (MIRROR, "http://127.0.0.1:5000")
    assert near.mirror(names.parse(name)) == MIRROR
    assert made().mirror(names.parse("tiny")) == MIRROR
    assert made("").mirror(names.parse("tiny")) == ""


def test_plain_http_leaves_the_house_only_for_whoever_says_so() -> None:
    far = made("http://mirror.example")
    with pytest.raises(RegistryRefused, match="plain http") as caught:
        asked(far)
    assert "--insecure" in caught.value.hint
    # Allowed for the mirror, it is not for the registry behind it.
    assert asked(far, insecure=True) == ("http://mirror.example", HOME)
    assert asked(made("http://192.168.1.7:5000")) == ("http://192.168.1.7:5000", HOME)
    with pytest.raises(RegistryRefused, match="plain http"):
        asked(made(""), f"http://{HOST}/library/tiny")
    assert asked(made(""), insecure=True) == (f"http://{HOST}",)


def test_a_registry_that_nobody_allowed_is_named_with_what_to_set() -> None:
    with pytest.raises(RegistryRefused) as caught:
        asked(made(""), "other.example/library/tiny")
    assert "LOCALFIRST_PULL_REGISTRIES=other.example" in caught.value.hint
    allowed = asked(made(""), "other.example/library/tiny", any_host=True)
    assert allowed == ("https://other.example",)


def test_who_is_asked_next_is_told_without_the_password() -> None:
    told = sources.passed_on(PullStalled("it stands"), MIRROR)
    assert told == "it stands: going on at `mirror.example`"


def test_an_error_of_both_is_led_by_the_one_that_says_most() -> None:
    down = PullError("the mirror is down", code="registry-unreachable")
    assert sources.of_both(None, down) is down
    lacks = RegistryRefused("no such model", status=404)
    led = sources.of_both(down, lacks)
    assert led is lacks and str(led) == "no such model; the mirror is down"
    away = PullError("no network", code="registry-dns")
    led = sources.of_both(PullError("the mirror is down"), away)
    assert str(led) == led.message == "the mirror is down; no network"  # type: ignore[union-attr]
