"""
Counters in Prometheus' text format, kept by hand: a few dictionaries and one page.

Labels are our own words only (routes, classes, rungs, provider ids); nothing that a client
chose ever becomes a label, so their number stays small.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localfirst.gateway.request import Request

BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the duration buckets: from a relayed error to a long answer on a CPU."""


class Cell:
    """The requests that ended alike: their durations in `BOUNDS_S` and above, their bytes."""

    __slots__ = ("counts", "sent_bytes", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.sent_bytes = 0


class Metrics:
    """What was answered since the start of this process."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, int, str, str, str], Cell] = {}

    def requests(self, surfaces: tuple[str, ...]) -> int:
        """How many were answered by surfaces whose names begin so."""
        return sum(
            sum(cell.counts) for key, cell in self._cells.items() if key[0].startswith(surfaces)
        )

    def note(self, request: Request, elapsed_s: float) -> None:
        """Count one finished request."""
        # One look for everything that is counted; the page adds up what it shows.
        key = (request.surface, request.status, request.outcome, request.rung, request.route)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = Cell()
        cell.counts[bisect_left(BOUNDS_S, elapsed_s)] += 1
        cell.sum_s += elapsed_s
        cell.sent_bytes += request.sent_bytes

    def page(self, gauges: Iterable[tuple[str, str, float]]) -> bytes:
        """
        Everything as text.

        Args:
            gauges: `(name, help, value)` of what is measured at this moment.
        """
        requests: Counter[tuple[str, int, str]] = Counter()
        answers: Counter[tuple[str, str]] = Counter()
        sent_bytes: Counter[str] = Counter()
        for (surface, status, outcome, rung, route), cell in self._cells.items():
            count = sum(cell.counts)
            requests[surface, status, outcome] += count
            sent_bytes[surface] += cell.sent_bytes
            if rung:
                answers[rung, route] += count
        lines: list[str] = []
        for name, text, value in gauges:
            lines += _head(name, "gauge", text)
            lines.append(f"{name} {value:g}")
        lines += _head("localfirst_requests_total", "counter", "requests by route and outcome")
        lines += [
            f"localfirst_requests_total{_labels(route=r, status=str(s), outcome=o)} {count}"
            for (r, s, o), count in sorted(requests.items())
        ]
        lines += _head("localfirst_answers_total", "counter", "answers by who gave them")
        lines += [
            f"localfirst_answers_total{_labels(rung=rung, provider=provider)} {count}"
            for (rung, provider), count in sorted(answers.items())
        ]
        lines += _head("localfirst_sent_bytes_total", "counter", "bytes of answers' bodies")
        lines += [
            f"localfirst_sent_bytes_total{_labels(route=route)} {count}"
            for route, count in sorted(sent_bytes.items())
        ]
        lines += self._durations()
        return ("\n".join(lines) + "\n").encode()

    def _durations(self) -> list[str]:
        name = "localfirst_request_duration_seconds"
        lines = _head(name, "histogram", "from a request's head to the end of its answer")
        found: dict[str, list[Cell]] = {}
        for key, cell in self._cells.items():
            found.setdefault(key[0], []).append(cell)
        for route, cells in sorted(found.items()):
            total = 0
            counts = map(sum, zip(*(cell.counts for cell in cells), strict=True))
            for bound, count in zip((*BOUNDS_S, float("inf")), counts, strict=True):
                total += count
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f"{name}_bucket{_labels(route=route, le=le)} {total}")
            lines.append(f"{name}_sum{_labels(route=route)} {sum(c.sum_s for c in cells):.6f}")
            lines.append(f"{name}_count{_labels(route=route)} {total}")
        return lines


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(**labels: str) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
