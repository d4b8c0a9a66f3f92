"""What is guarded: no byte is forgotten, none is fetched twice, and the slow are helped."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localfirst.models.pull_ranges import (
    CLAIM_MAX_BYTES,
    CLAIM_MIN_BYTES,
    SLOW_AFTER_S,
    STEAL_MIN_BYTES,
    Board,
    Ranges,
)

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


@given(pairs)
def test_ranges_hold_exactly_what_was_added(added: list[tuple[int, int]]) -> None:
    ranges = Ranges(added)
    expected = {at for start, end in added for at in range(start, end)}
    assert {at for start, end in ranges for at in range(start, end)} == expected
    assert ranges.total == len(expected)
    ends = [edge for pair in ranges for edge in pair]
    assert ends == sorted(set(ends))  # disjoint, sorted and never touching


@given(pairs, pairs)
def test_the_difference_of_two_sets(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    left = Ranges(one).without(Ranges(two))
    expected = {at for s, e in one for at in range(s, e)} - {
        at for s, e in two for at in range(s, e)
    }
    assert {at for start, end in left for at in range(start, end)} == expected


@given(pairs)
def test_gaps_and_content_together_are_the_whole(added: list[tuple[int, int]]) -> None:
    ranges = Ranges(added)
    for start, end in ranges.gaps(0, 60):
        ranges.add(start, end)
    assert list(ranges) == [(0, 60)]


def test_the_frontier_is_what_can_be_hashed_in_order() -> None:
    ranges = Ranges([(5, 9)])
    assert ranges.frontier == 0
    ranges.add(0, 5)
    assert ranges.frontier == 9


@pytest.mark.parametrize("seed", range(20))
def test_workers_of_any_speed_fetch_every_byte_once(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 400 * 2**20)
    board, claims, now = Board(size, Ranges()), [], 0.0
    fetched = 0
    for _ in range(100_000):
        now += 0.01
        if len(claims) < 4 and (claim := board.claim(now, rng.choice([0.0, 1e6, 1e8]))):
            claims.append(claim)
        if not claims:
            break
        claim = rng.choice(claims)
        if claim.lost or not claim.left or rng.random() < 0.02:
            board.release(claim)
            claims.remove(claim)
            continue
        count = min(claim.left, rng.randrange(1, 8 * 2**20))
        board.advance(claim, count)
        fetched += count
    assert board.complete and fetched == size


def test_a_claim_is_about_as_long_as_its_connection_is_fast() -> None:
    board = Board(2**40, Ranges())
    fast, slow = board.claim(0.0, 1e9), board.claim(0.0, 1e3)
    assert fast is not None and slow is not None
    assert (fast.left, slow.left) == (CLAIM_MAX_BYTES, CLAIM_MIN_BYTES)


def test_an_idle_worker_takes_half_of_the_largest_stretch() -> None:
    board = Board(CLAIM_MIN_BYTES, Ranges())
    first = board.claim(0.0)
    assert first is not None and first.left == CLAIM_MIN_BYTES
    second = board.claim(0.0)
    assert second is not None
    assert (first.end, second.start, second.end) == (
        CLAIM_MIN_BYTES // 2,
        CLAIM_MIN_BYTES // 2,
        CLAIM_MIN_BYTES,
    )


def test_the_last_crumbs_are_taken_from_a_connection_that_drips() -> None:
    board = Board(STEAL_MIN_BYTES, Ranges())
    drip = board.claim(0.0)
    assert drip is not None
    board.advance(drip, 100, SLOW_AFTER_S)
    assert board.claim(1.0, rate=1e6) is None  # too early to judge
    helper = board.claim(SLOW_AFTER_S + 1, rate=1e6)
    assert drip.lost and helper is not None and helper.start == 100


def test_all_that_a_silent_connection_holds_is_taken() -> None:
    board = Board(CLAIM_MIN_BYTES, Ranges())
    silent = board.claim(0.0)
    assert silent is not None
    board.advance(silent, 1000, 1.0)
    assert board.claim(1.0 + SLOW_AFTER_S, rate=1e6) is not None and not silent.lost
    helper = board.claim(1.1 + SLOW_AFTER_S, rate=1e6)
    assert silent.lost and helper is not None and helper.start == 1000


def test_what_a_broken_connection_left_is_free_again() -> None:
    board = Board(10 * 2**20, Ranges([(0, 2**20)]))
    claim = board.claim(0.0)
    assert claim is not None and claim.start == 2**20
    board.advance(claim, 1000)
    board.release(claim)
    again = board.claim(0.0)
    assert again is not None and again.start == 2**20 + 1000
