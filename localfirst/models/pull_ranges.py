"""
Which bytes of a blob are here, and who fetches the next ones.

`Ranges` is a set of half-open intervals; `Board` hands out stretches of what is missing,
lowest offset first so that hashing in order stays close behind, and splits the largest
stretch in flight when nothing else is left. No I/O, no threads: the caller holds a lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

# Small enough that the order of hashing is kept and a cut costs little, large enough that
# a request's round trip does not count; within these a stretch takes about `CLAIM_S`.
CLAIM_MIN_BYTES = 4 * 2**20
CLAIM_MAX_BYTES = 64 * 2**20
CLAIM_START_BYTES = 16 * 2**20
CLAIM_S = 3.0
STEAL_MIN_BYTES = 512 * 2**10
# Helping costs a request, and the helped one its connection; what ends sooner is left alone.
STEAL_MIN_S = 0.5
# A stretch this much slower than the one that just ended is taken away from its connection
# (ollama/ollama x/transfer restarts streams below 10 % of the median speed).
SLOW_SHARE = 0.1
SLOW_AFTER_S = 3.0


class Ranges:
    """A set of byte positions as sorted, disjoint `[start, end)` pairs."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._pairs: list[tuple[int, int]] = []
        for start, end in pairs:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add `[start, end)`; touching and overlapping intervals become one."""
        if end <= start:
            return
        pairs = self._pairs
        first = bisect_left(pairs, (start, start))
        if first and pairs[first - 1][1] >= start:
            first -= 1
        last = first
        while last < len(pairs) and pairs[last][0] <= end:
            start, end = min(start, pairs[last][0]), max(end, pairs[last][1])
            last += 1
        pairs[first:last] = [(start, end)]

    def without(self, other: Ranges) -> Ranges:
        """What is in this set and not in *other*."""
        left = Ranges()
        for start, end in self:
            for gap_start, gap_end in other.gaps(start, end):
                left.add(gap_start, gap_end)
        return left

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The stretches of `[start, end)` that are not in the set."""
        at = start
        for taken_start, taken_end in self._pairs:
            if taken_end <= at:
                continue
            if taken_start >= end:
                break
            if taken_start > at:
                yield at, taken_start
            at = taken_end
        if at < end:
            yield at, end

    @property
    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(end - start for start, end in self._pairs)

    @property
    def frontier(self) -> int:
        """The end of the interval that starts at 0, or 0."""
        return self._pairs[0][1] if self._pairs and self._pairs[0][0] == 0 else 0

    def copy(self) -> Ranges:
        """An independent set with the same content."""
        twin = Ranges()
        twin._pairs = list(self._pairs)
        return twin

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(self._pairs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and other._pairs == self._pairs

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({self._pairs})"


class Claim:
    """A stretch that one connection fetches; `end` may come closer when another helps."""

    __slots__ = ("began", "end", "lost", "moved", "position", "start")

    def __init__(self, start: int, end: int, began: float) -> None:
        self.start = start
        self.position = start
        self.end = end
        self.began = began
        self.moved = began
        self.lost = False

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self.end - self.position

    def rate(self, now: float) -> float:
        """Bytes a second so far."""
        return (self.position - self.start) / max(now - self.began, 1e-6)


class Board:
    """The state of one blob's transfer."""

    def __init__(self, size: int, done: Ranges) -> None:
        self.size = size
        self.done = done
        self.active: list[Claim] = []

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self.done.frontier >= self.size

    def claim(self, now: float, rate: float = 0.0) -> Claim | None:
        """The next stretch to fetch at about *rate* bytes a second, or None: nothing is left."""
        taken = self.done.copy()
        for claim in self.active:
            taken.add(claim.position, claim.end)
        gap = next(taken.gaps(0, self.size), None)
        if gap is None:
            return self._steal(now, rate)
        wanted = int(rate * CLAIM_S) if rate else CLAIM_START_BYTES
        length = max(CLAIM_MIN_BYTES, min(CLAIM_MAX_BYTES, wanted))
        end = min(gap[1], gap[0] + length)
        if gap[1] - end < CLAIM_MIN_BYTES // 2:
            end = min(gap[1], end + CLAIM_MIN_BYTES // 2)
        return self._give(gap[0], end, now)

    def advance(self, claim: Claim, count: int, now: float = 0.0) -> None:
        """Note that *count* more bytes of *claim* are in the file."""
        self.done.add(claim.position, claim.position + count)
        claim.position += count
        claim.moved = now

    def release(self, claim: Claim) -> None:
        """Give a stretch back, finished or not; what is missing of it is free again."""
        if claim in self.active:
            self.active.remove(claim)

    def _give(self, start: int, end: int, now: float) -> Claim:
        claim = Claim(start, end, now)
        self.active.append(claim)
        return claim

    def _steal(self, now: float, rate: float) -> Claim | None:
        """Help with what others have: all of a silent one's, half of the largest, a drip's."""
        if not self.active:
            return None
        silent = min(self.active, key=lambda claim: claim.moved)
        if rate and now - silent.moved > SLOW_AFTER_S:
            return self._take(silent, now)
        largest = max(self.active, key=lambda claim: claim.left)
        hurry = largest.left < STEAL_MIN_S * largest.rate(now)
        if largest.left >= 2 * STEAL_MIN_BYTES and not hurry:
            middle = largest.position + largest.left // 2
            end, largest.end = largest.end, middle
            return self._give(middle, end, now)
        slowest = min(self.active, key=lambda claim: claim.rate(now))
        drips = rate and slowest.rate(now) < SLOW_SHARE * rate
        return self._take(slowest, now) if drips and now - slowest.began > SLOW_AFTER_S else None

    def _take(self, claim: Claim, now: float) -> Claim:
        """Give all that is left of *claim* to another connection."""
        claim.lost = True
        self.release(claim)
        return self._give(claim.position, claim.end, now)
