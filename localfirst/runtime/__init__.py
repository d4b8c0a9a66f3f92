"""
The composition root: opens the rooms and wires them together.

Nothing else builds an engine, a provider or a cascade; the gateway, the library and the
commands all stand on one `Runtime`.
"""

from localfirst.cascade.run import Answer
from localfirst.runtime.entries import EmbedReply, ModelEntry
from localfirst.runtime.runtime import Runtime

__all__ = ["Answer", "EmbedReply", "ModelEntry", "Runtime"]
