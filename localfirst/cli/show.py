"""`localfirst show`: one installed model: what it is, what it needs, where it lies."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from localfirst.cli import render, session
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.runtime import Runtime

HEADER_BYTES = 256 * 2**10
"""Enough of a GGUF for every key of its architecture; its tokenizer comes after them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Show it; an unknown name is an error with the nearest one."""
    async with session.client(given) as client:
        runtime = await client.opened()
        found = about(runtime, given.model)
        seen = (await runtime.engine.measured()).get(found["name"])
    if seen is not None:
        found |= {"measured_bytes": seen.measured_bytes, "measured_tokens_per_s": seen.tokens_per_s}
    if given.json:
        render.as_json(found)
        return 0
    rows = [(name.replace("_", " "), worded(name, value)) for name, value in found.items()]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        if text:
            print(f"{render.paint(name.ljust(width), render.BOLD)}   {render.shown(text)}")
    return 0


def about(runtime: Runtime, name: str) -> dict[str, Json]:
    """Everything known of a stored model, with its prediction for this machine."""
    from localfirst.runtime import fitness

    stored = runtime.store.get(name)
    config = runtime.store.config(name)
    weights = stored.manifest.weights
    head, file = b"", ""
    if weights is not None and runtime.store.has_blob(weights):
        path = runtime.store.blob_path(weights.digest)
        file = str(path)
        with path.open("rb") as stream:
            head = stream.read(HEADER_BYTES)
    shape = fitness.shape_of(stored.manifest, head)
    fit = fitness.predict(stored.manifest, head, runtime.hardware())
    return {
        "name": stored.name,
        "digest": stored.digest,
        "size_bytes": stored.size_bytes,
        "family": config.get("model_family", ""),
        "parameters": config.get("model_type", ""),
        "quantization": config.get("file_type", ""),
        "architecture": shape.architecture,
        "context_tokens": shape.context_tokens,
        "fit": str(fit.verdict),
        "fit_reason": fit.reason,
        "needed_bytes": fit.needed_bytes,
        "tokens_per_s": list(fit.tokens_per_s) if fit.tokens_per_s else None,
        "params": runtime.store.params(name),
        "system": runtime.store.text(name, "system"),
        "template": runtime.store.text(name, "template"),
        "license": runtime.store.text(name, "license").strip().partition("\n")[0],
        "file": file,
    }


def worded(name: str, value: Json) -> str:
    """A value for people."""
    if name.endswith("_bytes"):
        return f"{render.size(value)} ({value:,} bytes)" if value else ""
    if name == "tokens_per_s":
        return f"{value[0]:.0f} to {value[1]:.0f}" if value else ""
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value or "")
