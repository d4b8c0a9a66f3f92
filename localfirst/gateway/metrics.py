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


class Histogram:
    """Durations of one route, in `BOUNDS_S` and above."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Metrics:
    """What was answered since the start of this process."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int, str]] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.durations: dict[str, Histogram] = {}

    def note(self, request: Request, elapsed_s: float) -> None:
        """Count one finished request."""
        surface = request.surface
        self.requests[surface, request.status, request.outcome] += 1
        self.sent_bytes[surface] += request.sent_bytes
        if request.rung:
            self.answers[request.rung, request.route] += 1
        durations = self.durations.get(surface)
        if durations is None:
            durations = self.durations[surface] = Histogram()
        durations.note(elapsed_s)

    def page(self, gauges: Iterable[tuple[str, str, float]]) -> bytes:
        """
        Everything as text.

        Args:
            gauges: `(name, help, value)` of what is measured at this moment.
        """
        lines: list[str] = []
        for name, text, value in gauges:
            lines += _head(name, "gauge", text)
            lines.append(f"{name} {value:g}")
        lines += _head("localfirst_requests_total", "counter", "requests by route and outcome")
        lines += [
            f"localfirst_requests_total{_labels(route=r, status=str(s), outcome=o)} {count}"
            for (r, s, o), count in sorted(self.requests.items())
        ]
        lines += _head("localfirst_answers_total", "counter", "answers by who gave them")
        lines += [
            f"localfirst_answers_total{_labels(rung=rung, provider=provider)} {count}"
            for (rung, provider), count in sorted(self.answers.items())
        ]
        lines += _head("localfirst_sent_bytes_total", "counter", "bytes of answers' bodies")
        lines += [
            f"localfirst_sent_bytes_total{_labels(route=route)} {count}"
            for route, count in sorted(self.sent_bytes.items())
        ]
        lines += self._durations()
        return ("\n".join(lines) + "\n").encode()

    def _durations(self) -> list[str]:
        name = "localfirst_request_duration_seconds"
        lines = _head(name, "histogram", "from a request's head to the end of its answer")
        for route, found in sorted(self.durations.items()):
            total = 0
            for bound, count in zip((*BOUNDS_S, float("inf")), found.counts, strict=True):
                total += count
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f"{name}_bucket{_labels(route=route, le=le)} {total}")
            lines.append(f"{name}_sum{_labels(route=route)} {found.sum_s:.6f}")
            lines.append(f"{name}_count{_labels(route=route)} {total}")
        return lines


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(**labels: str) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
