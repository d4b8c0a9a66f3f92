"""What a stored model is: read from its GGUF's header once, and kept by digest."""

from __future__ import annotations

import msgspec

from localfirst.engines.base import LocalModel
from localfirst.errors import LocalFirstError
from localfirst.machine import fit
from localfirst.models import gguf
from localfirst.models.gguf import GgufHeader
from localfirst.models.store import Store, StoredModel
from localfirst.types import Clock, Json


class About(msgspec.Struct, frozen=True, kw_only=True):
    """
    A stored model as the engine needs it.

    `template` is the GGUF's own Jinja text, `pooling` how it pools embeddings ("" not
    said), `projector` the path of its vision part; `params`, `system` and `go_template`
    are the manifest's. `capabilities` are what it can do in Ollama.
    """

    name: str
    path: str
    architecture: str = ""
    context_tokens: int = 0
    template: str = ""
    go_template: str = ""
    pooling: str = ""
    projector: str = ""
    system: str = ""
    params: dict[str, Json] = {}
    capabilities: tuple[str, ...] = ()
    shape: fit.ModelShape = fit.ModelShape(known=False)
    parameters: str = ""
    quantization: str = ""

    @property
    def num_ctx(self) -> int:
        """The context of the model's own parameters, 0 when they name none."""
        own = self.params.get("num_ctx")
        return own if isinstance(own, int) and own > 0 else 0

    @property
    def embedded_capabilities(self) -> tuple[str, ...]:
        """
        What it can do in the embedded engine, which shows tools by the file's own template.

        The Jinja that stands in for a Go template writes turns and no tools.
        """
        shows = "tools" in self.template
        return tuple(word for word in self.capabilities if word != "tools" or shows)


POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


def read(store: Store, stored: StoredModel) -> About:
    """
    Read what *stored* is.

    Raises:
        UnknownModel, VerificationFailed: the model or its file is not there or not whole.
    """
    path = store.model_file(stored.ref)
    header = gguf.read_file(path)
    projector = stored.manifest.first("projector")
    template = header.text("tokenizer.chat_template")
    go_template = store.text(stored.ref, "template")
    config = store.config(stored.ref)
    return About(
        name=stored.name,
        path=str(path),
        architecture=header.architecture,
        context_tokens=header.number("context_length"),
        template=template,
        go_template=go_template,
        pooling=POOLING.get(header.number("pooling_type", -1), ""),
        projector=str(store.blob_path(projector.digest)) if projector else "",
        system=store.text(stored.ref, "system"),
        params=store.params(stored.ref),
        capabilities=capabilities(header, template + go_template, vision=projector is not None),
        shape=fit.shape_from_gguf(
            header, path.stat().st_size, projector_bytes=projector.size_bytes if projector else 0
        ),
        parameters=str(config.get("model_type", "")),
        quantization=str(config.get("file_type", "")) or header.quantization,
    )


def capabilities(header: GgufHeader, templates: str, *, vision: bool) -> tuple[str, ...]:
    """What a model can do, in Ollama's words and by the marks Ollama goes by."""
    if header.architecture in fit.ENCODERS:
        return ("embedding",)
    found = ["completion"]
    if "tools" in templates or ".Tools" in templates:
        found.append("tools")
    if vision:
        found.append("vision")
    if any(mark in templates for mark in ("<think>", "enable_thinking", ".Thinking")):
        found.append("thinking")
    return tuple(found)


class Shelf:
    """The store's models with what they are; headers are read once per manifest digest."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, About] = {}

    def get(self, name: str) -> About:
        """As `read`; raises as it does."""
        return self._about(self._store.get(name))

    def digest(self, name: str) -> str:
        """The manifest digest of *name* in this store, "" when it is not there."""
        stored = self._store.find(name)
        return stored.digest if stored is not None else ""

    def path(self, digest: str) -> str:
        """The file of the model with that manifest digest, "" when it was not read yet."""
        known = self._known.get(digest)
        return known.path if known is not None else ""

    def _about(self, stored: StoredModel) -> About:
        known = self._known.get(stored.digest)
        if known is None or known.name != stored.name:
            known = self._known[stored.digest] = read(self._store, stored)
        return known

    def listed(
        self, clock: Clock, budget_s: float = 1.0, *, embedded: bool = False
    ) -> tuple[LocalModel, ...]:
        """
        Every model whose file is whole, newest first, as Ollama or the *embedded* engine can
        run it.

        Headers that are new take time to read: what *budget_s* does not suffice for is
        listed without its details, which come with a later call.
        """
        deadline = clock.monotonic() + budget_s
        found = []
        for stored in self._store.models():
            about: About | None = None
            if stored.digest in self._known or clock.monotonic() < deadline:
                try:
                    about = self._about(stored)
                except (LocalFirstError, OSError):
                    continue
            model = local_model(stored, about)
            if embedded and about is not None:
                can = about.embedded_capabilities
                model = msgspec.structs.replace(model, capabilities=can)
            found.append(model)
        return tuple(found)


def local_model(stored: StoredModel, about: About | None = None) -> LocalModel:
    """A stored model as engines list it."""
    plain = LocalModel(
        name=stored.name,
        digest=stored.digest,
        size_bytes=stored.size_bytes,
        modified_unix=stored.modified_unix,
    )
    if about is None:
        return plain
    return msgspec.structs.replace(
        plain,
        context_tokens=about.context_tokens,
        capabilities=about.capabilities,
        family=about.architecture,
        parameters=about.parameters,
        quantization=about.quantization,
    )
