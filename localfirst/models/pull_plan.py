"""What is asked of a pull, and what it would take. Pure."""

from __future__ import annotations

import msgspec

from localfirst.models.manifest import Manifest
from localfirst.models.names import ModelName


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `digest` pins the manifest; `manifest` is taken instead of asking."""

    ref: ModelName
    insecure: bool = False
    any_host: bool = False
    digest: str = ""
    force: bool = False
    fit_check: bool = True
    manifest: Manifest | None = None


class PullPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull would do: the answer to `--dry-run`. `header` is the GGUF's beginning."""

    name: str
    manifest: Manifest
    total_bytes: int
    partial_bytes: int
    needed_bytes: int
    free_bytes: int
    reserve_bytes: int
    header: bytes = b""

    @property
    def disk_fits(self) -> bool:
        """Whether the disk takes it and keeps its reserve."""
        return not self.needed_bytes or self.free_bytes >= self.needed_bytes + self.reserve_bytes
