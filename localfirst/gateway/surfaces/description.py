"""What `/api/show` tells of one installed model, read from the store's own files."""

from __future__ import annotations

import math
from pathlib import Path

from localfirst.errors import LocalFirstError
from localfirst.gateway.views import Installed, Shelf
from localfirst.models import gguf
from localfirst.models.gguf_types import TensorType
from localfirst.types import Json
from localfirst.wire.ollama.answers import stamp

HEAD_BYTES = 16 * 2**20
"""More than any vocabulary takes; a larger head is left out."""


def describe(store: Shelf, model: Installed, verbose: bool) -> dict[str, Json]:
    """Template, parameters, capabilities and metadata; blocking, for a thread."""
    found: dict[str, Json] = {
        "details": details(model),
        "model_info": _known(model),
        "capabilities": list(model.capabilities),
        "modified_at": stamp(model.modified_unix),
    }
    try:
        found.update(_stored(store, model.name, verbose))
    except (LocalFirstError, OSError):
        # The engine's models may lie in a store that is not ours to read.
        found["modelfile"] = f"FROM {model.name}\n"
    return found


def details(model: Installed) -> dict[str, Json]:
    """`details` as Ollama spells them, in lists and here alike."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family] if model.family else None,
        "parameter_size": model.parameters,
        "quantization_level": model.quantization,
    }


def _stored(store: Shelf, name: str, verbose: bool) -> dict[str, Json]:
    weights = store.model_file(name)
    params = store.params(name)
    template, system = store.text(name, "template"), store.text(name, "system")
    head = _head(weights)
    info = _metadata(head, verbose)
    if head and head.complete:
        # As Ollama counts it; what the file itself says of it need not be true.
        count = sum(math.prod(tensor.shape) for tensor in head.tensors)
        info["general.parameter_count"] = count
    told = {
        "license": store.text(name, "license"),
        "modelfile": _modelfile(name, weights, template, system, params),
        "parameters": "\n".join(f"{key:<30} {value}" for key, value in _flat(params)),
        "template": template or str(info.get("tokenizer.chat_template") or ""),
        "system": system,
        "model_info": info,
        "tensors": [_tensor(tensor) for tensor in head.tensors] if head else [],
    }
    return {key: value for key, value in told.items() if value}


def _modelfile(
    name: str, weights: Path, template: str, system: str, params: dict[str, Json]
) -> str:
    lines = [f"# To build a new model on this one, replace FROM with:\n# FROM {name}\n"]
    lines.append(f"FROM {weights}")
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER {key} {value}" for key, value in _flat(params)]
    return "\n".join(lines) + "\n"


def _flat(params: dict[str, Json]) -> list[tuple[str, Json]]:
    pairs: list[tuple[str, Json]] = []
    for key, value in sorted(params.items()):
        values = value if isinstance(value, list) else [value]
        pairs += [(key, f'"{one}"' if isinstance(one, str) else one) for one in values]
    return pairs


def _known(model: Installed) -> dict[str, Json]:
    """The metadata that clients look for, where the model's file is not ours to read."""
    if not model.family or not model.context_tokens:
        return {}
    window = f"{model.family}.context_length"
    return {"general.architecture": model.family, window: model.context_tokens}


def _head(weights: Path) -> gguf.GgufHeader | None:
    with weights.open("rb") as file:
        try:
            return gguf.read_header(file.read(HEAD_BYTES))
        except LocalFirstError:
            return None


def _metadata(head: gguf.GgufHeader | None, verbose: bool) -> dict[str, Json]:
    """
    The GGUF's key-values; lists only when asked for, as Ollama does it.

    Those too long to be kept when the header was read (a vocabulary) stay null even then.
    """
    kept = bool | int | float | str | (list | tuple if verbose else str)
    return {
        key: value if isinstance(value, kept) else None
        for key, value in (head.metadata if head else {}).items()
    }


def _tensor(tensor: gguf.TensorInfo) -> dict[str, Json]:
    try:
        kind = TensorType(tensor.type).name
    except ValueError:
        kind = "unknown"
    return {"name": tensor.name, "type": kind, "shape": tensor.shape}
