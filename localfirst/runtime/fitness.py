"""The download's gate: will the model run here? Asked after the manifest, before any blob."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from localfirst.errors import InsufficientResources
from localfirst.machine import fit, recommend
from localfirst.machine.fit import Fit, Hardware, ModelShape, Verdict
from localfirst.models import gguf
from localfirst.models.manifest import Manifest

CONTEXT_TOKENS = 4096
"""The context a model must have room for when nobody asked for more: Ollama's own default."""

NAMED = 3
"""How many models a refusal names."""


def shape_of(manifest: Manifest, head: bytes) -> ModelShape:
    """The model's shape from the first bytes of its file, else from its size alone."""
    weights, projector = manifest.weights, manifest.first("projector")
    try:
        return fit.shape_from_gguf(
            gguf.read_header(head),
            weights.size_bytes if weights else manifest.size_bytes,
            projector_bytes=projector.size_bytes if projector else 0,
        )
    except gguf.GgufInvalid:
        return fit.shape_from_size(manifest.size_bytes)


def predict(manifest: Manifest, head: bytes, hardware: Hardware, *, context_tokens: int = 0) -> Fit:
    """What loading this model here would take, and whether it can be had."""
    return fit.predict(
        shape_of(manifest, head), hardware, context_tokens=context_tokens or CONTEXT_TOKENS
    )


def gate(
    hardware: Callable[[], Hardware], *, context_tokens: int = 0
) -> Callable[[Manifest, bytes], Awaitable[None]]:
    """
    A check for `Puller`: refuses what this machine could not run even at rest.

    What is unknown passes, and so does what only lacks memory that something else holds
    at this moment. The disk is the puller's own matter.

    Raises (when called):
        InsufficientResources: the memory will not do, with both figures.
    """

    async def check(manifest: Manifest, head: bytes) -> None:
        refuse(predict(manifest, head, hardware(), context_tokens=context_tokens), hardware())

    return check


def refuse(found: Fit, hardware: Hardware) -> None:
    """
    Refuse a model for what was predicted of it.

    Raises:
        InsufficientResources: the memory will not do, with both figures.
    """
    if found.verdict is Verdict.NO and not found.could_fit:
        raise InsufficientResources(
            f"the model does not fit this machine: {found.reason}",
            kind="memory",
            needed_bytes=found.needed_bytes,
            available_bytes=found.available_bytes,
            hint=what_fits(hardware),
        )


def what_fits(hardware: Hardware) -> str:
    """The next step for whoever was refused: models that this machine can run."""
    best = [one.model.name for one in recommend.rank(hardware, recommend.catalogue())[:NAMED]]
    if not best:
        return "no model of the catalogue fits this machine; a cloud's key would let it answer"
    named = ", ".join(f"`{name}`" for name in best)
    return f"these fit: {named}; `localfirst recommend` tells more"
