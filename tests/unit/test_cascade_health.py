"""Who cools down, for how long, and what brings them back."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localfirst.cascade.health import DAY_S, NEVER, Cooldown, Gate, Health
from localfirst.cascade.quota import Quota, windows_in
from localfirst.types import Failure, FailureClass, Rung, Scope, Target

T0 = 1_795_176_000.0


def target(provider: str = "groq", key: str = "K", model: str = "m") -> Target:
    return Target(rung=Rung.CLOUD, provider=provider, model=model, key_label=key)


def fail(
    health: Health,
    cls: FailureClass,
    scope: Scope,
    now: float = T0,
    at: Target | None = None,
    **rest: object,
) -> Cooldown | None:
    return health.failed(at or target(), Failure(cls=cls, scope=scope, **rest), now)  # type: ignore[arg-type]


def gate(health: Health, now: float, at: Target | None = None) -> Gate:
    return health.view().gate(at or target(), now)[0]


GUESSES = [
    (FailureClass.RATE_LIMIT, Scope.KEY_MODEL, 60.0),
    (FailureClass.TIMEOUT, Scope.PROVIDER, 30.0),
    (FailureClass.NETWORK, Scope.PROVIDER, 5.0),
    (FailureClass.UNAVAILABLE, Scope.PROVIDER, 5.0),
    (FailureClass.UNKNOWN, Scope.PROVIDER, 5.0),
    (FailureClass.AUTH, Scope.KEY, NEVER),
    (FailureClass.MODEL_NOT_FOUND, Scope.MODEL, DAY_S),
]


@pytest.mark.parametrize(("cls", "scope", "seconds"), GUESSES)
def test_a_first_failure_cools_as_the_table_says(
    cls: FailureClass, scope: Scope, seconds: float
) -> None:
    entry = fail(Health(), cls, scope)
    assert entry is not None and entry.duration_s == seconds


def test_quota_waits_a_day_for_credit_and_for_midnight_otherwise() -> None:
    assert fail(Health(), FailureClass.QUOTA, Scope.KEY, status=402).duration_s == DAY_S  # type: ignore[union-attr]
    entry = fail(Health(), FailureClass.QUOTA, Scope.KEY, T0 + 600.0, status=429)
    assert entry is not None and entry.duration_s == 12 * 3600.0 - 600.0  # T0 is noon


@pytest.mark.parametrize(
    "cls",
    [FailureClass.CONTEXT_LENGTH, FailureClass.CONTENT_FILTER, FailureClass.INVALID_REQUEST],
)
def test_the_requests_own_fault_cools_nobody(cls: FailureClass) -> None:
    health = Health()
    assert fail(health, cls, Scope.REQUEST) is None
    assert health.idle


def test_only_the_scope_that_failed_cools() -> None:
    health = Health()
    fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL)
    assert gate(health, T0) is Gate.COOLING
    for other in (target(key="K2"), target(model="m2"), target(provider="gemini")):
        assert gate(health, T0, other) is Gate.READY
    fail(health, FailureClass.AUTH, Scope.KEY)
    assert gate(health, T0, target(model="m2")) is Gate.COOLING


def test_guesses_grow_with_every_ejection_and_shrink_with_health() -> None:
    health = Health()
    lengths = [
        fail(health, FailureClass.NETWORK, Scope.PROVIDER, T0 + n * 200).duration_s  # type: ignore[union-attr]
        for n in range(4)
    ]
    assert lengths == [5.0, 10.0, 20.0, 40.0]
    later = fail(health, FailureClass.NETWORK, Scope.PROVIDER, T0 + 600 + 1200)
    assert later is not None and later.duration_s == 5.0


@pytest.mark.parametrize(
    "cls",
    [
        FailureClass.NETWORK,
        FailureClass.UNKNOWN,
        FailureClass.UNAVAILABLE,
        FailureClass.INVALID_RESPONSE,
    ],
)
def test_a_day_of_failures_cools_no_longer_than_the_longest_guess_and_is_forgiven_in_hours(
    cls: FailureClass,
) -> None:
    health = Health()
    for n in range(3000):
        fail(health, cls, Scope.PROVIDER, T0 + n / 100)
    worst = fail(health, cls, Scope.PROVIDER, T0 + 30)
    assert worst is not None and worst.duration_s <= 300.0
    later = fail(health, cls, Scope.PROVIDER, T0 + 6 * 3600)
    assert later is not None and later.duration_s == 5.0


def test_a_longer_wait_is_never_shortened() -> None:
    health = Health()
    fact = {"retry_after_s": 500.0, "retry_is_fact": True}
    fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL, **fact)
    fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL, T0 + 1)
    assert gate(health, T0 + 499) is Gate.COOLING
    assert gate(health, T0 + 500) is Gate.READY


def test_a_fact_is_kept_and_a_guess_is_probed_early_by_one_request() -> None:
    health = Health()
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    assert gate(health, T0 + 14.9) is Gate.COOLING
    assert gate(health, T0 + 15) is Gate.PROBE
    assert health.admit(target(), T0 + 15)
    assert not health.admit(target(), T0 + 15)
    health.left(target())
    assert health.admit(target(), T0 + 16)
    health.succeeded(target())
    assert health.idle


@pytest.mark.parametrize("scope", [Scope.PROVIDER, Scope.MODEL, Scope.KEY])
@pytest.mark.parametrize(
    "cls", [FailureClass.MODEL_NOT_FOUND, FailureClass.AUTH, FailureClass.TIMEOUT]
)
def test_nothing_on_this_machine_cools_for_long(cls: FailureClass, scope: Scope) -> None:
    entry = fail(Health(), cls, scope, at=target("local"))
    assert entry is not None and entry.duration_s == 5.0


def test_a_guess_beside_a_fact_does_not_undo_it() -> None:
    health = Health()
    for n in range(6):
        fail(health, FailureClass.NETWORK, Scope.PROVIDER, T0 + n)
    fact = {"retry_after_s": 90.0, "retry_is_fact": True}
    fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL, T0 + 6, **fact)
    assert gate(health, T0 + 95) is Gate.COOLING
    assert gate(health, T0 + 97) is Gate.PROBE


def test_a_failed_probe_opens_again_for_longer() -> None:
    health = Health()
    fail(health, FailureClass.UNAVAILABLE, Scope.PROVIDER)
    assert health.admit(target(), T0 + 3)
    entry = fail(health, FailureClass.UNAVAILABLE, Scope.PROVIDER, T0 + 3)
    assert entry is not None and entry.duration_s == 10.0
    assert not health.admit(target(), T0 + 4)


def test_bad_answers_cool_a_model_only_after_three_in_a_row() -> None:
    health = Health()
    bad = (FailureClass.INVALID_RESPONSE, Scope.MODEL)
    assert [fail(health, *bad), fail(health, *bad)] == [None, None]
    health.succeeded(target())
    assert [fail(health, *bad), fail(health, *bad)] == [None, None]
    assert fail(health, *bad) is not None


def test_a_cooldown_survives_a_restart_and_a_clock_set_back() -> None:
    first, second = Health(), Health()
    fail(first, FailureClass.TIMEOUT, Scope.PROVIDER)
    second.restore(first.snapshot(), T0 - 100_000.0)
    assert gate(second, T0 - 100_000.0 + 29) in {Gate.COOLING, Gate.PROBE}
    assert gate(second, T0 - 100_000.0 + 31) is Gate.PROBE


def test_what_is_over_is_not_restored() -> None:
    first, second = Health(), Health()
    fail(first, FailureClass.TIMEOUT, Scope.PROVIDER)
    second.restore(first.snapshot(), T0 + 31)
    assert second.idle


def test_a_refused_key_is_tried_again_when_its_configuration_changed() -> None:
    first = Health(marks={"K": "old"})
    fail(first, FailureClass.AUTH, Scope.KEY)
    same, changed, unknown = Health(marks={"K": "old"}), Health(marks={"K": "new"}), Health()
    for health in (same, changed, unknown):
        health.restore(first.snapshot(), T0 + 1)
    assert [same.idle, changed.idle, unknown.idle] == [False, True, True]


def test_a_provider_that_is_forgiven_keeps_what_its_server_said() -> None:
    """Somebody asks for it by hand: our guesses give way, and begin anew."""
    health = Health()
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    fail(health, FailureClass.NETWORK, Scope.PROVIDER, T0 + 1, at=target("gemini"))
    fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL, retry_after_s=500.0, retry_is_fact=True)
    before = health.revision
    assert health.forgive("groq") == (("groq", "", ""),)
    assert health.revision > before
    assert {entry.place for entry in health.snapshot()} == {("groq", "K", "m"), ("gemini", "", "")}
    assert gate(health, T0 + 2, target(key="K2")) is Gate.READY
    # Its strikes are forgotten with it.
    again = fail(health, FailureClass.UNAVAILABLE, Scope.PROVIDER, T0 + 2)
    assert again is not None and again.duration_s == 5.0
    assert health.forgive("nobody") == ()


def test_a_restart_knows_how_often_somebody_failed() -> None:
    first, second = Health(), Health()
    for n in range(3):
        fail(first, FailureClass.NETWORK, Scope.PROVIDER, T0 + n)
    second.restore(first.snapshot(), T0 + 3)
    entry = fail(second, FailureClass.NETWORK, Scope.PROVIDER, T0 + 60)
    assert entry is not None and entry.duration_s == 40.0
    # And so does one that counted more itself than the ledger knows, or later.
    second.restore(first.snapshot(), T0 + 4)
    entry = fail(second, FailureClass.NETWORK, Scope.PROVIDER, T0 + 120)
    assert entry is not None and entry.duration_s == 80.0


def test_what_another_process_changed_is_seen_at_once() -> None:
    health, other = Health(), Health()
    before = health.view()
    fail(other, FailureClass.TIMEOUT, Scope.PROVIDER)
    health.restore(other.snapshot(), T0)
    assert health.view() is not before
    assert gate(health, T0) is Gate.COOLING
    # What is over but was not tried since, the ledger does not tell of; it is still tried by one.
    health.restore((), T0 + 31)
    assert gate(health, T0 + 31) is Gate.PROBE
    health.restore((), T0 + 29)
    assert health.idle


def test_a_wait_that_lies_in_the_future_is_no_longer_than_itself() -> None:
    first, second = Health(), Health()
    fail(first, FailureClass.TIMEOUT, Scope.PROVIDER)
    second.restore(first.snapshot(), T0 - 500.0)
    (entry,) = second.snapshot()
    assert (entry.since_unix, entry.until_unix) == (T0 - 500.0, T0 - 470.0)
    # A second apart is two clocks that are read one after the other.
    second.restore(first.snapshot(), T0 - 1.0)
    (entry,) = second.snapshot()
    assert entry.until_unix == T0 + 30.0
    # An endless wait stays one, whenever it began.
    refused = Health(marks={"K": "same"})
    fail(refused, FailureClass.AUTH, Scope.KEY)
    again = Health(marks={"K": "same"})
    again.restore(refused.snapshot(), T0 - 500.0)
    assert [one.until_unix for one in again.snapshot()] == [NEVER]


def test_a_clock_that_was_set_moves_every_wait_every_probe_and_every_strike() -> None:
    health = Health()
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    assert health.admit(target(), T0 + 15)
    assert gate(health, T0 + 15) is Gate.COOLING
    health.shift(-1000.0)
    (entry,) = health.snapshot()
    assert (entry.since_unix, entry.until_unix) == (T0 - 1000.0, T0 - 970.0)
    # The probe is still out, and its place is free a minute after it began, not after 17.
    assert gate(health, T0 - 1000.0 + 20) is Gate.COOLING
    assert gate(health, T0 - 1000.0 + 76) is Gate.PROBE
    # Five minutes without a failure forgive a strike, by the new clock as by the old.
    health.left(target())
    later = fail(health, FailureClass.NETWORK, Scope.PROVIDER, T0 - 1000.0 + 300.0)
    assert later is not None and later.strikes == 1


def test_a_milder_failure_leaves_the_longer_wait_as_it_was() -> None:
    health = Health()
    fact = {"retry_after_s": 500.0, "retry_is_fact": True}
    fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL, **fact)
    entry = fail(health, FailureClass.RATE_LIMIT, Scope.KEY_MODEL, T0 + 100.0)
    assert entry is not None
    assert (entry.since_unix, entry.duration_s, entry.until_unix) == (T0 + 100, 400.0, T0 + 500)


@pytest.mark.parametrize(
    ("cls", "lengths"),
    [
        (FailureClass.NETWORK, [5, 10, 20, 40, 80, 160, 300, 300]),
        (FailureClass.UNAVAILABLE, [5, 10, 15, 20, 25, 30, 35, 40]),
        (FailureClass.UNKNOWN, [5, 10, 20, 40, 80, 80, 80, 80]),
        (FailureClass.CONFIG, [600] * 8),
        (FailureClass.INVALID_RESPONSE, [5, 10, 15, 20, 25, 30]),  # from the third on
    ],
)
def test_a_guess_grows_from_failure_to_failure_up_to_its_longest(
    cls: FailureClass, lengths: list[float]
) -> None:
    health = Health()
    found = [fail(health, cls, Scope.PROVIDER, T0 + n) for n in range(8)]
    assert [one.duration_s for one in found if one is not None] == lengths


def test_an_answer_that_fits_its_schema_ends_the_row_of_misses() -> None:
    health = Health()
    for fulfilled in (False, False, True, False, False):
        assert health.judged(target(), fulfilled=fulfilled, now_unix=T0) is None
    entry = health.judged(target(), fulfilled=False, now_unix=T0)
    assert entry is not None and "schemas" in entry.message
    assert gate(health, T0) is Gate.COOLING


def test_the_time_to_the_first_token_follows_what_was_measured() -> None:
    health = Health()
    for seconds in (1.0, 2.0):
        health.note_first_token("groq/m", seconds)
    assert health.first_token_s["groq/m"] == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("cls", "scope"),
    [
        (FailureClass.INVALID_REQUEST, Scope.REQUEST),
        (FailureClass.INVALID_RESPONSE, Scope.MODEL),
        (FailureClass.RATE_LIMIT, Scope.KEY_MODEL),
    ],
)
def test_a_failure_frees_the_probes_place_whatever_it_was(cls: FailureClass, scope: Scope) -> None:
    health = Health()
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    assert health.admit(target(), T0 + 15)
    fail(health, cls, scope, T0 + 15)
    assert gate(health, T0 + 15, target(key="K2", model="m2")) is Gate.PROBE


def test_what_is_healed_is_seen_at_once_and_its_next_probe_is_its_own() -> None:
    health = Health()
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    assert health.admit(target(), T0 + 15)
    assert gate(health, T0 + 16) is Gate.COOLING
    health.began(target())
    assert gate(health, T0 + 16) is Gate.READY
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER, T0 + 17)
    assert gate(health, T0 + 40) is Gate.PROBE


def test_a_refused_key_that_cools_here_is_not_let_loose_by_the_ledgers_word() -> None:
    """What was refused under the present configuration stays, whoever reads the file again."""
    health = Health(marks={"K": "now"})
    entry = fail(health, FailureClass.AUTH, Scope.KEY)
    assert entry is not None
    health.restore([entry], T0 + 1)
    assert not health.idle
    health.restore([msgspec.structs.replace(entry, mark="before")], T0 + 2)
    assert health.idle
    # One that names no configuration is of a key that nobody has any more.
    unmarked = Health()
    unmarked.restore([msgspec.structs.replace(entry, mark="")], T0 + 2)
    assert unmarked.idle


def test_the_view_is_one_object_until_something_changes() -> None:
    health = Health()
    before = health.view()
    assert health.view() is before
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    assert health.view() is not before
    assert before.cooldowns == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(FailureClass)),
            st.sampled_from(list(Scope)),
            st.floats(0, 2000),
            st.none() | st.floats(0, 5000),
        ),
        max_size=12,
    )
)
def test_no_sequence_of_failures_brings_a_recovery_forward(
    failures: list[tuple[FailureClass, Scope, float, float | None]],
) -> None:
    health, now = Health(), T0
    ends: dict[tuple[str, str, str], float] = {}
    for cls, scope, after, stated in failures:
        now += after
        fail(health, cls, scope, now, retry_after_s=stated, retry_is_fact=stated is not None)
        for entry in health.snapshot():
            if ends.get(entry.place, 0.0) > now:
                assert entry.until_unix >= ends[entry.place] - 1e-6
            ends[entry.place] = entry.until_unix


# --- quota ------------------------------------------------------------------------------------

HEADERS = {
    "openai": [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")],
    "cerebras": [
        ("x-ratelimit-remaining-requests-day", "0"), ("x-ratelimit-reset-requests-day", "360.0"),
    ],
    "mistral": [("x-ratelimit-remaining-req-minute", "0"),
                ("x-ratelimit-reset-req-minute", "360")],
    "anthropic": [
        ("anthropic-ratelimit-requests-remaining", "0"),
        ("anthropic-ratelimit-requests-reset", "2026-11-20T12:06:00Z"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cloud", HEADERS)
def test_a_spent_window_is_learnt_from_every_clouds_headers(cloud: str) -> None:
    quota = Quota()
    quota.learn(target(), HEADERS[cloud], T0)
    refusal = quota.refusal(target(), 10, T0 + 1)
    assert refusal is not None and refusal.ready_unix == pytest.approx(T0 + 360)
    assert quota.refusal(target(), 10, T0 + 361) is None
    assert quota.refusal(target(key="K2"), 10, T0 + 1) is None


def test_tokens_that_are_left_bound_the_request() -> None:
    quota = Quota()
    headers = [
        ("x-ratelimit-limit-tokens", "6000"),
        ("x-ratelimit-remaining-tokens", "1000"),
        ("x-ratelimit-reset-tokens", "7.66s"),
    ]
    quota.learn(target(), headers, T0)
    assert quota.refusal(target(), 900, T0) is None
    assert quota.refusal(target(), 1100, T0) is not None


def test_a_prompt_is_measured_by_what_is_left_and_never_by_more_than_the_whole_window() -> None:
    quota = Quota()
    left = ("x-ratelimit-remaining-tokens", "1000")
    quota.learn(target(), [left], T0)
    assert quota.refusal(target(), 1000, T0) is None
    assert quota.refusal(target(), 1001, T0) is not None
    # What never fits is for them to refuse.
    quota.learn(target(), [left, ("x-ratelimit-limit-tokens", "1000")], T0)
    assert quota.refusal(target(), 9000, T0) is None
    # Nothing left is nothing left, however little is asked.
    quota.learn(target(), [("x-ratelimit-remaining-tokens", "0")], T0)
    assert quota.refusal(target(), 0, T0) is not None
    # Over at the second that was told.
    assert quota.refusal(target(), 0, T0 + 60.0) is None


def test_the_tokens_that_are_in_flight_are_no_longer_left() -> None:
    quota = Quota()
    quota.learn(target(), [("x-ratelimit-remaining-tokens", "1000")], T0)
    quota.reserve(target(), 300)
    quota.reserve(target(), 300)
    assert quota.refusal(target(), 401, T0) is not None
    assert quota.refusal(target(), 400, T0) is None
    quota.release(target(), 300)
    assert quota.refusal(target(), 701, T0) is not None
    assert quota.refusal(target(), 700, T0) is None
    quota.release(target(), 300)
    assert quota.refusal(target(), 1000, T0) is None


def test_requests_in_flight_are_counted_one_by_one() -> None:
    quota = Quota()
    quota.learn(target(), [("x-ratelimit-remaining-requests", "3")], T0)
    for step in (quota.reserve, quota.reserve, quota.release, quota.reserve, quota.release):
        step(target(), 0)
    quota.reserve(target(), 0)
    assert quota.refusal(target(), 0, T0) is None
    quota.reserve(target(), 0)
    assert quota.refusal(target(), 0, T0) is not None


def test_a_reset_moves_with_the_wall_clock() -> None:
    quota = Quota()
    quota.learn(target(), [("x-ratelimit-remaining-requests", "0")], T0)
    quota.shift(3600.0)
    refusal = quota.refusal(target(), 0, T0 + 3601.0)
    assert refusal is not None and refusal.ready_unix == T0 + 3660.0


def test_what_was_learnt_is_handed_on_with_its_place_and_its_time() -> None:
    ((place, window),) = (
        Quota().learn(target(), [("x-ratelimit-remaining-requests", "5")], T0).items()
    )
    assert place == ("groq", "K", "m", "requests")
    assert (window.remaining, window.limit, window.learnt_unix) == (5.0, 0.0, T0)


def test_what_is_in_flight_counts() -> None:
    quota = Quota(concurrency={"groq": 5})
    headers = [("x-ratelimit-remaining-requests", "2"), ("x-ratelimit-reset-requests", "60s")]
    quota.learn(target(), headers, T0)
    for _ in range(2):
        assert quota.refusal(target(), 0, T0) is None
        quota.reserve(target(), 0)
    assert quota.refusal(target(), 0, T0) is not None
    quota.release(target(), 0)
    assert quota.refusal(target(), 0, T0) is None


def test_a_provider_takes_no_more_than_its_concurrency() -> None:
    quota = Quota(concurrency={"groq": 1})
    quota.reserve(target(), 0)
    refusal = quota.refusal(target(model="other"), 0, T0)
    assert refusal is not None and refusal.ready_unix is None
    quota.release(target(), 0)
    quota.release(target(), 0)
    quota.reserve(target(), 0)
    assert quota.in_flight["groq"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        [("x-request-id", "1"), ("x-ratelimit-remaining-requests", "many")],
        # Of what, it does not say (OpenRouter), or of something that nobody counts here.
        [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1795176060000")],
        [("x-ratelimit-remaining-images", "0")],
        [("x-quota-limit", "0"), ("x-quota-remaining", "0"), ("cf-reset", "1")],
    ],
)
def test_headers_that_are_no_limits_teach_nothing(headers: list[tuple[str, str]]) -> None:
    assert windows_in(headers, T0) == {}


def test_a_keyless_provider_heals_although_its_account_and_itself_are_one_place() -> None:
    """A server without a key: what cools the provider cools the "account" too, once."""
    health = Health()
    keyless = target("mybox", key="")
    refused = Failure(cls=FailureClass.NETWORK, scope=Scope.PROVIDER)
    assert health.failed(keyless, refused, 100.0) is not None
    assert health.succeeded(keyless) == (("mybox", "", ""),)
    assert health.idle


@pytest.mark.parametrize(
    ("name", "wait_s"),
    [
        ("requests-day", 12 * 3600.0 - 600.0),
        ("requests-month", 12 * 3600.0 - 600.0),
        ("requests-hour", 3600.0),
        ("tokens-minute", 60.0),
        ("requests", 60.0),
    ],
)
def test_a_spent_window_without_a_reset_lasts_as_long_as_its_name_says(
    name: str, wait_s: float
) -> None:
    now = T0 + 600.0  # ten minutes past noon
    found = windows_in([(f"x-ratelimit-remaining-{name}", "0")], now)
    assert found[name].reset_unix == now + wait_s


def test_a_cooldown_that_is_over_is_not_shown_as_one() -> None:
    health = Health()
    fail(health, FailureClass.TIMEOUT, Scope.PROVIDER)
    assert len(health.cooling(T0 + 29)) == 1
    assert health.cooling(T0 + 31) == ()


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    health = Health()
    for number in range(3000):
        target = Target(rung=Rung.CLOUD, provider="groq", model=f"made-up-{number}")
        health.failed(
            target, Failure(cls=FailureClass.MODEL_NOT_FOUND, scope=Scope.MODEL), T0 + number
        )
    assert len(health.snapshot()) <= 1024
    assert len(health._strikes) <= 1024
    # The latest is known.
    assert health.view().gate(target, T0 + 3000)[0] is Gate.COOLING


def test_the_times_of_made_up_routes_fill_no_memory() -> None:
    health = Health()
    for number in range(5000):
        health.note_first_token(f"groq/m{number}", 0.1)
    assert len(health.first_token_s) <= 1024
    assert "groq/m4999" in health.first_token_s
