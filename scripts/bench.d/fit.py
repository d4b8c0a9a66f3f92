"""
Prediction against truth: what `machine.fit` says a model takes, and what the engine takes.

Writes synthetic models, loads each in the embedded engine in a child, and compares twice:
the buffers predicted with those that the engine itself reports, and the process predicted
with its resident size. Two families: those that the constants were fitted with, and those
that were held out. Exit code 1 when any is off by more than 10 %, or was not measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fakes.engine_memory import MIB, NotMeasured
from tests.fakes.model_family import FAMILY, Member, predicted, weighed
from tests.fakes.model_family_held_out import HELD_OUT

ALLOWED = 0.10
HEAD = (
    f"{'(MiB)':<42}{'context':>9}{'weights':>9}{'cache':>8}{'compute':>9}"
    f"{'buffers':>9}{'reported':>10}{'error':>8}{'process':>9}{'resident':>10}{'error':>8}"
)
Errors = tuple[float, float]
"""Of the buffers against the engine's report, and of the process against its resident size."""


def row(member: Member, folder: Path) -> tuple[str, Errors]:
    """Weigh one member; returns its line and the errors of the prediction."""
    path = folder / "model.gguf"
    found = predicted(member, path)
    taken = weighed(member, path)
    buffers = found.weights_bytes + found.kv_bytes + found.compute_bytes
    errors = buffers / taken.buffers - 1, found.needed_bytes / taken.resident - 1
    window = f"{member.context}x{member.parallel}" if member.parallel > 1 else f"{member.context}"
    line = (
        f"{member.name:<42}{window:>9}"
        f"{found.weights_bytes / MIB:>9.1f}{found.kv_bytes / MIB:>8.1f}"
        f"{found.compute_bytes / MIB:>9.1f}{buffers / MIB:>9.1f}{taken.buffers / MIB:>10.1f}"
        f"{errors[0]:>+8.1%}{found.needed_bytes / MIB:>9.1f}{taken.resident / MIB:>10.1f}"
        f"{errors[1]:>+8.1%}"
    )
    return line, errors


def table(title: str, members: Sequence[Member], folder: Path) -> list[Errors]:
    """Print one family; returns the errors of each."""
    print(f"\n{title}\n{HEAD}")
    found: list[Errors] = []
    for member in members:
        try:
            line, errors = row(member, folder)
        except NotMeasured as error:
            line = f"{member.name:<42} not measured: {str(error).splitlines()[-1][:90]}"
            errors = (float("inf"), float("inf"))
        found.append(errors)
        print(line, flush=True)
    return found


def summary(title: str, errors: Sequence[Errors]) -> bool:
    """Print how many are near enough by either measure, and the worst; whether all are."""
    for part, what in enumerate(("the engine's own report", "the process' resident size")):
        off = [abs(one[part]) for one in errors]
        good = sum(error <= ALLOWED for error in off)
        print(
            f"{title}: {good} of {len(off)} within ±{ALLOWED:.0%} of {what}; worst {max(off):.1%}"
        )
    return all(max(abs(error) for error in one) <= ALLOWED for one in errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="members whose name holds this")
    only = parser.parse_args().only
    found: dict[str, list[Errors]] = {}
    with tempfile.TemporaryDirectory(prefix="localfirst-fit-") as folder:
        for title, family in (("fitted", FAMILY), ("held out", HELD_OUT)):
            members = [member for member in family if only in member.name]
            if members:
                found[title] = table(title, members, Path(folder))
    print()
    good = [summary(title, errors) for title, errors in found.items()]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
