"""
The best model that this machine can run, out of a short, dated catalogue.

    what fits        by `fit.predict`, disk included
    what is usable   not slower than people read
    what is best     the catalogue's order of quality

Pure: hardware and catalogue come in, a ranking comes out. The catalogue's sizes are those
the library prints; before a download the manifest and header decide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from localfirst.machine.fit import (
    OLLAMA,
    Fit,
    Hardware,
    Layer,
    Loading,
    Measured,
    ModelShape,
    Placement,
    Verdict,
    corrected,
    predict,
    shown,
)

CONTEXT_TOKENS = 8192  # a conversation with a document; Ollama's own 4096 is short for tools
READING_TOKENS_S = 6.0  # about the speed of attentive reading
LAST_RESORT = "llama2:7b"
LAST_RESORT_CONTEXT = 4096
LAST_RESORT_BYTES = 8 * 10**9  # nobody waits for more while a request hangs


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """
    One model of the catalogue.

    `size_bytes` of the download; `kv_bytes_per_token` of a half-precision cache,
    `kv_fixed_bytes` of windows and states that do not grow; `active_parameters` of a
    mixture's token. `quality` is an order, `source` where the facts are from.
    """

    name: str
    title: str
    size_bytes: int
    parameters: int
    active_parameters: int
    context_tokens: int
    kv_bytes_per_token: int
    kv_fixed_bytes: int
    embedding: int
    work: int
    heads: int
    layers: int
    vocab: int
    capabilities: tuple[str, ...]
    licence: str
    released: str
    quality: int
    source: str
    note: str = ""

    @property
    def shape(self) -> ModelShape:
        """The shape that predictions are made from; caches are spread over the layers evenly."""
        per_layer = self.kv_bytes_per_token // (4 * self.layers)
        state = self.kv_fixed_bytes // self.layers
        active = self.size_bytes * self.active_parameters // self.parameters
        return ModelShape(
            weights_bytes=self.size_bytes,
            embedding_bytes=min(self.vocab * self.embedding // 2, self.size_bytes // 3),
            active_bytes=active,
            layers=(Layer(key=per_layer, value=per_layer, state_bytes=state),) * self.layers,
            embedding=self.embedding,
            work=self.work,
            heads=self.heads,
            vocab=self.vocab,
            context_tokens=self.context_tokens,
            parameters=self.parameters,
        )


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """The models known on the day `dated` (ISO)."""

    dated: str
    models: tuple[Entry, ...]
    about: str = ""

    def find(self, name: str) -> Entry | None:
        """The entry of this name; `NAME:latest` is not guessed."""
        return next((entry for entry in self.models if entry.name == name), None)


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """One model for this machine: its prediction, and one line on why it stands here."""

    model: Entry
    fit: Fit
    why: str
    slow: bool = False
    installed: bool = False


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """
    The model that a last-resort download fetches.

    `name` "" when none fits. `requested` is set when `name` stands in for it; `reason` says
    so in words, for the answer's header, the log and the terminal.
    """

    name: str
    reason: str
    requested: str = ""
    fit: Fit | None = None


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The catalogue that ships with this release."""
    path = Path(__file__).parent / "data" / "catalogue.json"
    return msgspec.json.decode(path.read_bytes(), type=Catalogue)


def rank(
    hardware: Hardware,
    known: Catalogue | None = None,
    *,
    needs: Collection[str] = ("completion",),
    context_tokens: int = CONTEXT_TOKENS,
    loading: Loading = OLLAMA,
    installed: Collection[str] = (),
    measured: Mapping[str, Measured] | None = None,
    reserve_disk_bytes: int = 0,
    everything: bool = False,
) -> list[Recommendation]:
    """
    The models with all of *needs* that run here, the best first.

    Order: fits before tight before unknown; usable before slow; then quality; then the
    smaller. What is *installed* needs no disk. *measured* loads correct their predictions.
    With *everything* those that do not fit come last, with the reason.
    """
    found = []
    for entry in (known or catalogue()).models:
        if not set(needs) <= set(entry.capabilities):
            continue
        here = entry.name in installed
        prediction = predict(
            entry.shape,
            hardware,
            context_tokens=context_tokens,
            loading=loading,
            download_bytes=0 if here else entry.size_bytes,
            reserve_disk_bytes=reserve_disk_bytes,
        )
        prediction = corrected(prediction, (measured or {}).get(entry.name))
        if everything or prediction.verdict is not Verdict.NO:
            found.append(_recommendation(entry, prediction, installed=here))
    return sorted(found, key=_order)


def last_resort(
    hardware: Hardware,
    requested: str = LAST_RESORT,
    known: Catalogue | None = None,
    *,
    context_tokens: int = LAST_RESORT_CONTEXT,
    reserve_disk_bytes: int = 0,
    most_bytes: int = LAST_RESORT_BYTES,
) -> Choice:
    """
    The model to download when nothing else can answer.

    *requested* itself when it fits, may fit, or is not in the catalogue (its own header
    then decides); "auto", or one that does not fit, gives way to the best that does.
    """
    known = known or catalogue()
    entry = known.find(requested)
    if entry is None and requested != "auto":
        return Choice(name=requested, reason=f"`{requested}` as configured")
    own = None
    if entry is not None:
        own = predict(
            entry.shape,
            hardware,
            context_tokens=context_tokens,
            download_bytes=entry.size_bytes,
            reserve_disk_bytes=reserve_disk_bytes,
        )
        if own.verdict is not Verdict.NO:
            return Choice(name=requested, reason=f"`{requested}` as configured", fit=own)
    best = _best_small(hardware, known, context_tokens, reserve_disk_bytes, most_bytes)
    return _instead(requested, own, best)


def _best_small(
    hardware: Hardware, known: Catalogue, context: int, reserve_bytes: int, most_bytes: int
) -> Recommendation | None:
    ranked = rank(hardware, known, context_tokens=context, reserve_disk_bytes=reserve_bytes)
    return next((one for one in ranked if one.model.size_bytes <= most_bytes), None)


def _instead(requested: str, own: Fit | None, best: Recommendation | None) -> Choice:
    why_not = f"`{requested}` does not fit: {own.reason}" if own else ""
    if best is None:
        reason = why_not or "no model of the catalogue fits this machine"
        return Choice(name="", reason=reason, requested=requested, fit=own)
    text = f"`{best.model.name}` is the best that fits"
    return Choice(
        name=best.model.name,
        reason=f"{why_not}; {text}" if why_not else text,
        requested="" if requested == "auto" else requested,
        fit=best.fit,
    )


def _recommendation(entry: Entry, prediction: Fit, *, installed: bool) -> Recommendation:
    speed = prediction.tokens_per_s
    slow = speed is not None and (speed[0] * speed[1]) ** 0.5 < READING_TOKENS_S
    return Recommendation(
        model=entry,
        fit=prediction,
        why=_why(entry, prediction, slow=slow, installed=installed),
        slow=slow,
        installed=installed,
    )


def _why(entry: Entry, prediction: Fit, *, slow: bool, installed: bool) -> str:
    if prediction.verdict is Verdict.NO:
        return prediction.reason
    words = [f"{shown(prediction.needed_bytes)} of memory"]
    match prediction.placement:
        case Placement.GPU:
            words.append("all of it on the GPU")
        case Placement.SPLIT:
            words.append(f"{prediction.gpu_layers} of {prediction.layers} layers on the GPU")
        case Placement.CPU:
            words.append("on the processor")
    if prediction.tokens_per_s:
        low, high = prediction.tokens_per_s
        words.append(f"{low:.0f} to {high:.0f} tokens/s")
    if entry.active_parameters * 2 < entry.parameters:
        words.append("reads a part of itself for each token")
    if slow:
        words.append("slower than reading")
    if prediction.verdict is Verdict.TIGHT:
        words.append("barely")
    words.append("installed" if installed else f"{shown(entry.size_bytes)} to download")
    return ", ".join(words)


_VERDICTS = (Verdict.FITS, Verdict.TIGHT, Verdict.UNKNOWN, Verdict.NO)


def _order(one: Recommendation) -> tuple[int, bool, int, int, str]:
    verdict = _VERDICTS.index(one.fit.verdict)
    return verdict, one.slow, -one.model.quality, one.model.size_bytes, one.model.name
