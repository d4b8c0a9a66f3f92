"""What the doctor is told, and what it says. Other rooms' states come in as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from localfirst.machine.fit import Hardware
from localfirst.machine.recommend import Choice
from localfirst.machine.serverless import Verdict
from localfirst.settings import Settings


class Severity(StrEnum):
    """`error`: something asked for cannot work; `warn`: it works badly or will stop working."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """
    One thing found out.

    `code` is stable and kebab-case; `area` groups (memory, gpu, disk, engine, models,
    providers, network, settings, answer). `evidence` is what was seen, `fix` the next step
    ("" where none is needed).
    """

    code: str
    area: str
    severity: Severity
    title: str
    evidence: str = ""
    fix: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model as an engine lists it; the fields are those of `engines.base.LocalModel`."""

    name: str
    size_bytes: int = 0
    fit: str = "unknown"
    loaded: bool = False
    loaded_bytes: int = 0
    loaded_vram_bytes: int = 0
    remote: bool = False
    needed_bytes: int = 0
    tokens_per_s: tuple[float, float] | None = None
    measured_bytes: int = 0
    measured_tokens_per_s: float = 0.0


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A local engine's state; the fields are those of `engines.base.EngineStatus`."""

    kind: str
    state: str
    ready: bool
    can_start: bool = False
    version: str = ""
    endpoint: str = ""
    adopted: bool = False
    reason: str = ""
    models: tuple[Model, ...] = ()

    @classmethod
    def of(cls, status: object) -> Engine:
        """Take what is needed from anything with these attributes."""
        return msgspec.convert(status, cls, from_attributes=True)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """
    One cloud: `state` is "ready" or why not ("no key", "placeholder key", "disabled").

    `unset` are variables that the settings name for its keys and that hold nothing, and
    `wanting` says so.
    """

    provider: str
    state: str
    reason: str = ""
    variables: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    wanting: str = ""


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asked for a registry's models first; `backed` says that it stands in for it."""

    registry: str
    host: str
    backed: bool = False


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """
    The folder of models: `unwritable` is why nothing can be written there, "" when it can.

    `damaged` are models whose files do not match their digests, `partial_bytes` what
    interrupted downloads hold.
    """

    root: str
    unwritable: str = ""
    models: int = 0
    damaged: tuple[str, ...] = ()
    partial_bytes: int = 0


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A real answer made with the network shut off: `error` "" when it came."""

    model: str
    tokens: int = 0
    duration_s: float = 0.0
    error: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything the findings are made from; nothing is looked up afterwards.

    `online` None: not known. `embedded` says that the embedded engine is installed.
    `state_unwritable` is why the state folder cannot be written, or "".
    """

    hardware: Hardware
    settings: Settings
    serverless: Verdict
    engine: Engine | None = None
    embedded: bool = False
    ollama_installed: bool = False
    keys: tuple[Key, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    online: bool | None = None
    online_reason: str = ""
    store: StoreFacts = StoreFacts(root="")
    last_resort: Choice | None = None
    state_unwritable: str = ""
    proof: Proof | None = None

    @property
    def models(self) -> Sequence[Model]:
        """What the engine lists, without models that answer from elsewhere."""
        listed = self.engine.models if self.engine else ()
        return [model for model in listed if not model.remote]

    @property
    def runnable(self) -> list[Model]:
        """Local models that are not known to be too large."""
        return [model for model in self.models if model.fit != "no"]

    @property
    def engine_ready(self) -> bool:
        """True when a request sent now is answered, or starts what answers it."""
        return self.engine is not None and (self.engine.ready or self.engine.can_start)

    @property
    def clouds(self) -> list[Key]:
        """The clouds that a request could go to."""
        named = set(self.settings.order)
        return [key for key in self.keys if key.state == "ready" and key.provider in named]

    @property
    def local_only(self) -> bool:
        """True when nothing may leave this machine."""
        return self.settings.privacy == "local-only"
