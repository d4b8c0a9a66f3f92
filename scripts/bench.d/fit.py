"""
Prediction against truth: what `machine.fit` says a model takes, and what the engine takes.

Writes a family of synthetic models, loads each in the embedded engine in a child, and
prints the buffers predicted beside those the engine reports, and the process predicted
beside its resident size. Exit code 1 when either is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fakes.engine_memory import MIB, measure
from tests.fakes.model_family import FAMILY, Member, predicted

ALLOWED = 0.10
HEAD = (
    f"{'model':<32}{'context':>9}{'weights':>9}{'cache':>8}{'compute':>9}"
    f"{'buffers':>9}{'reported':>10}{'error':>7}{'process':>9}{'resident':>10}{'error':>7}"
)


def row(member: Member, folder: Path) -> tuple[str, float]:
    """Weigh one member; returns its line and the error of the prediction."""
    path = folder / "model.gguf"
    found = predicted(member, path)
    taken = measure(
        path,
        context=member.context,
        parallel=member.parallel,
        cache_type=member.cache_type,
        flash_attention=member.flash_attention,
        mmap=member.mmap,
        prompt_tokens=member.prompt_tokens,
    )
    buffers = found.weights_bytes + found.kv_bytes + found.compute_bytes
    error = buffers / taken.buffers - 1
    resident = found.needed_bytes / taken.resident - 1
    window = f"{member.context}x{member.parallel}" if member.parallel > 1 else f"{member.context}"
    line = (
        f"{member.name:<32}{window:>9}"
        f"{found.weights_bytes / MIB:>9.1f}{found.kv_bytes / MIB:>8.1f}"
        f"{found.compute_bytes / MIB:>9.1f}{buffers / MIB:>9.1f}{taken.buffers / MIB:>10.1f}"
        f"{error:>+7.1%}{found.needed_bytes / MIB:>9.1f}{taken.resident / MIB:>10.1f}"
        f"{resident:>+7.1%}"
    )
    return line, max(abs(error), abs(resident))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="members whose name holds this")
    only = parser.parse_args().only
    print(HEAD + "   (MiB)")
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="localfirst-fit-") as folder:
        for member in FAMILY:
            if only in member.name:
                line, error = row(member, Path(folder))
                worst = max(worst, error)
                print(line, flush=True)
    print(f"largest error {worst:.1%}; allowed {ALLOWED:.0%}")
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
