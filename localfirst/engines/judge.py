"""
Verdicts for listed models: does each fit this machine as it is now, and how fast is it here.

Whatever a daemon on this machine says of its loaded models is taken for experience, and so
are the speeds of its answers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from localfirst.engines.base import EngineStatus, LocalModel
from localfirst.engines.experience import Experience, Loading
from localfirst.engines.llamacpp.about import About, Shelf
from localfirst.engines.llamacpp.plan import embedding_batch
from localfirst.engines.llamacpp.wanted import EMBED_CONTEXT_TOKENS
from localfirst.engines.ollama.listing import full_name
from localfirst.errors import LocalFirstError
from localfirst.events import Event, Finished, Relayed
from localfirst.machine import fit
from localfirst.machine.fit import Fit, Hardware, Measured
from localfirst.machine.fit.memory import CACHE_BYTES
from localfirst.transport.http import is_loopback

CONTEXT_TOKENS = 4096
NANOSECONDS = 1e9
_EVAL = re.compile(rb'"eval_duration":\s*(\d+)')


class Judge:
    """
    Reads the models' files where it may; *hardware* gives the last measurement at once.

    *environ* says how an Ollama that shares it loads (`OLLAMA_NUM_PARALLEL`,
    `OLLAMA_KV_CACHE_TYPE`, `OLLAMA_CONTEXT_LENGTH`); *num_ctx* is the setting.
    """

    def __init__(
        self,
        shelf: Shelf | None,
        hardware: Callable[[], Hardware],
        experience: Experience | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        num_ctx: int = 0,
    ) -> None:
        self._shelf = shelf
        self._measure = hardware
        self._experience = experience or Experience(None)
        self._ollama = _as_ollama_loads(environ or {})
        self._num_ctx = num_ctx
        self._daemons_num_ctx = _whole(environ or {}, "OLLAMA_CONTEXT_LENGTH")
        self._on_gpu: set[str] = set()
        self._spoken: dict[str, tuple[int, float]] = {}

    def expects_gpu(self, name: str) -> bool:
        """Whether the last look found room for *name* on a GPU."""
        return name in self._on_gpu

    def heard(self, name: str, event: Event) -> None:
        """Take in the end of an Ollama's answer that had the machine to itself."""
        tokens, seconds = _spoken(event)
        if tokens:
            self._spoken[full_name(name)] = tokens, seconds

    def measured(self, model: LocalModel, kind: str) -> Measured | None:
        """What this machine knows of *model* in an engine of *kind*; not on an event loop."""
        return self._experience.measured(self._loading(model, kind))

    async def judged(self, status: EngineStatus) -> EngineStatus:
        """*status* with a verdict for every model."""
        if not status.models:
            return status
        return await asyncio.to_thread(self._judged, status, self._measure())

    def _judged(self, status: EngineStatus, hardware: Hardware) -> EngineStatus:
        self._experience.refresh()
        if status.kind == "ollama" and is_loopback(urlsplit(status.endpoint).hostname or ""):
            for model in status.models:
                self._learn(model, hardware)
        models = tuple(self._with_verdict(model, status.kind, hardware) for model in status.models)
        self._experience.save()
        return msgspec.structs.replace(status, models=models)

    def _learn(self, model: LocalModel, hardware: Hardware) -> None:
        """What the daemon says that a loaded model takes, and how fast its last answer came."""
        spoken = self._spoken.pop(full_name(model.name), None)
        if spoken is not None:
            self._experience.note_speed(self._loading(model, "ollama"), *spoken)
        if not model.loaded or not model.loaded_context_tokens:
            return
        # Where there is no GPU, Ollama counts some processors' own buffers as one's memory.
        vram = model.loaded_vram_bytes if any(gpu.usable for gpu in hardware.gpus) else 0
        before = fit.freed(hardware, ram_bytes=model.loaded_bytes - vram, vram_bytes=vram)
        found = self._predicted(model, "ollama", before, model.loaded_context_tokens)
        self._experience.note_allocated(
            found,
            self._loading(model, "ollama"),
            size_bytes=model.loaded_bytes,
            vram_bytes=vram,
        )

    def _with_verdict(self, model: LocalModel, kind: str, hardware: Hardware) -> LocalModel:
        if model.remote:
            return model
        model = self._with_abilities(model, kind)
        found = self._predicted(model, kind, hardware, self._context(model, kind))
        found = self._experience.applied(found, self._loading(model, kind))
        if found.placement is fit.Placement.CPU:
            self._on_gpu.discard(model.name)
        else:
            self._on_gpu.add(model.name)
        verdict = fit.Verdict.FITS if model.loaded else found.verdict
        return msgspec.structs.replace(
            model,
            fit=str(verdict),
            loaded_vram_bytes=0 if _only_amx(hardware) else model.loaded_vram_bytes,
            needed_bytes=found.needed_bytes,
            tokens_per_s=found.tokens_per_s,
            measured_bytes=found.measured_bytes,
            measured_tokens_per_s=found.measured_tokens_per_s,
        )

    def _with_abilities(self, model: LocalModel, kind: str) -> LocalModel:
        """
        *model* with what its own file says it can do.

        Ollama's list knows only of Go templates; what a GGUF's own template can do `/api/show`
        alone tells (ollama/ollama server/model_list_cache.go, images.go).
        """
        about = self._about(model, kind) if model.capabilities else None
        if about is None or "completion" not in model.capabilities:
            return model
        unsaid = [word for word in about.capabilities if word not in model.capabilities]
        capabilities = (*model.capabilities, *unsaid)
        return msgspec.structs.replace(model, capabilities=capabilities, partial=False)

    def _context(self, model: LocalModel, kind: str) -> int:
        """
        The context to judge with: what somebody chose, where the engine keeps to it.

        The embedded engine takes a shorter one where memory is short, as Ollama does with
        what it chose itself.
        """
        if kind == "llamacpp":
            return CONTEXT_TOKENS
        about = self._about(model, kind)
        own = about.num_ctx if about else 0
        return self._num_ctx or own or self._daemons_num_ctx or CONTEXT_TOKENS

    def _predicted(self, model: LocalModel, kind: str, hardware: Hardware, context: int) -> Fit:
        about = self._about(model, kind)
        shape = about.shape if about else fit.shape_from_size(model.size_bytes)
        loading = self._ollama
        embeds = model.capabilities == ("embedding",)
        if kind == "llamacpp":
            mapped = not shape.repack_bytes or bool(hardware.gpus)
            loading = msgspec.structs.replace(fit.EMBEDDED, mmap=mapped)
            if embeds:
                context = min(context, EMBED_CONTEXT_TOKENS)
                batch = embedding_batch(context, about.pooling if about else "")
                loading = msgspec.structs.replace(loading, batch=batch)
        if embeds:
            loading = msgspec.structs.replace(loading, embedding=True, parallel=1)
        return fit.predict(shape, hardware, context_tokens=context, loading=loading)

    def _loading(self, model: LocalModel, kind: str) -> Loading:
        embeds = model.capabilities == ("embedding",)
        ours = kind == "llamacpp"
        return Loading(
            engine=kind if ours else "ollama",
            model=self._key(model, kind),
            parallel=1 if ours or embeds else self._ollama.parallel,
            cache_type="f16" if ours else self._ollama.cache_type_k,
            embedding=embeds,
        )

    def _key(self, model: LocalModel, kind: str) -> str:
        """What experience with *model* is kept by: the embedded engine knows only its file."""
        about = self._about(model, kind) if kind == "llamacpp" else None
        return Path(about.path).name if about else model.digest

    def _about(self, model: LocalModel, kind: str) -> About | None:
        """The model's own file, when it is the very one that is listed."""
        if self._shelf is None:
            return None
        try:
            if kind == "llamacpp" or self._shelf.digest(model.name) == model.digest:
                return self._shelf.get(model.name)
        except (LocalFirstError, OSError):
            pass
        return None


def _only_amx(hardware: Hardware) -> bool:
    """
    Whether what Ollama counts as GPU memory is none: weights for Intel's AMX lie in a buffer
    of their own, which it takes for a GPU's (ollama/ollama llm/llama_server.go, MemorySize).
    """
    return not hardware.gpus and any(name.startswith("amx") for name in hardware.cpu.features)


def _as_ollama_loads(environ: Mapping[str, str]) -> fit.Loading:
    kind = environ.get("OLLAMA_KV_CACHE_TYPE", "")
    kind = kind if kind in CACHE_BYTES else "f16"
    return msgspec.structs.replace(
        fit.OLLAMA,
        parallel=min(max(_whole(environ, "OLLAMA_NUM_PARALLEL"), 1), 64),
        cache_type_k=kind,
        cache_type_v=kind,
    )


def _whole(environ: Mapping[str, str], name: str) -> int:
    """A whole number of Ollama's settings, 0 where it is none."""
    text = environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _spoken(event: Event) -> tuple[int, float]:
    """Generated tokens and their seconds, as Ollama's last line tells them; (0, 0.0) else."""
    if isinstance(event, Finished):
        took: object = event.timings.get("eval_duration")
    elif isinstance(event, Relayed) and event.final and (found := _EVAL.search(event.data)):
        took = int(found[1])
    else:
        return 0, 0.0
    if event.usage is None or not isinstance(took, int) or took <= 0:
        return 0, 0.0
    return event.usage.completion_tokens, took / NANOSECONDS
