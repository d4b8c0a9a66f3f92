"""What a load really took, and what that says of the next prediction."""

from __future__ import annotations

import msgspec

from localfirst.machine.fit.facts import Fit, Placement, Scarce, Verdict
from localfirst.machine.fit.verdict import band, shown

# Beyond this the measurement speaks of something else: another program, another model.
BELIEVED = (0.5, 2.0)
SPEED_SPREAD = (0.85, 1.15)  # one machine's own variation between runs


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """
    One model's load on this machine: what was predicted for it and what it took.

    `predicted_bytes` and `measured_bytes` are totals over RAM and GPU memory at
    `context_tokens`; `measured_vram_bytes` of them on GPUs, None where the engine does not
    tell. `tokens_per_s` 0: not measured.
    """

    context_tokens: int
    predicted_bytes: int
    measured_bytes: int
    measured_vram_bytes: int | None = None
    tokens_per_s: float = 0.0

    @property
    def ratio(self) -> float:
        """Measured over predicted; 0 when either is missing."""
        return max(self.measured_bytes, 0) / self.predicted_bytes if self.predicted_bytes > 0 else 0


def corrected(prediction: Fit, measured: Measured | None) -> Fit:
    """
    *prediction* as the machine's own experience with this model changes it.

    At the measured context the measured figure stands; at another one the prediction is
    scaled by the same error. An error beyond `BELIEVED` is not taken for the model's.
    """
    if measured is None:
        return prediction
    prediction = _with_speed(prediction, measured.tokens_per_s)
    ratio = measured.ratio
    believed = BELIEVED[0] <= ratio <= BELIEVED[1]
    same = measured.context_tokens == prediction.context_tokens
    # Of a model whose shape is not known nobody can say what another context takes.
    if not believed or not prediction.needed_bytes or not (same or prediction.layers):
        return prediction
    ram, vram = int(prediction.ram_bytes * ratio), int(prediction.vram_bytes * ratio)
    if same:
        vram = vram if measured.measured_vram_bytes is None else measured.measured_vram_bytes
        ram = max(0, measured.measured_bytes - vram)
    verdict = _verdict(prediction, ram, vram)
    return msgspec.structs.replace(
        prediction,
        verdict=verdict,
        reason=_reason(prediction, ram + vram, verdict),
        needed_bytes=ram + vram,
        ram_bytes=ram,
        vram_bytes=vram,
        measured_bytes=ram + vram,
    )


def _with_speed(prediction: Fit, tokens_per_s: float) -> Fit:
    if tokens_per_s <= 0:
        return prediction
    low, high = (round(tokens_per_s * share, 1) for share in SPEED_SPREAD)
    return msgspec.structs.replace(
        prediction, tokens_per_s=(low, high), measured_tokens_per_s=round(tokens_per_s, 1)
    )


def _verdict(prediction: Fit, ram: int, vram: int) -> Verdict:
    no_disk = prediction.disk_needed_bytes > prediction.disk_free_bytes
    if not prediction.available_bytes or (no_disk and prediction.verdict is Verdict.NO):
        return prediction.verdict
    if prediction.scarce is Scarce.GPU:
        # Of a model that is split as many layers lie there as there is room for.
        fits = prediction.placement is Placement.SPLIT or vram <= prediction.available_bytes
        return Verdict.FITS if fits else band(vram, prediction.available_bytes)
    shared = vram if prediction.scarce is Scarce.SHARED else 0
    return band(ram + shared, prediction.available_bytes)


def _reason(prediction: Fit, needed: int, verdict: Verdict) -> str:
    text = f"took {shown(needed)} here before"
    if verdict is not prediction.verdict:
        return f"{text}, so {verdict} where the formula says {prediction.verdict}"
    return f"{text}; {prediction.reason}"
