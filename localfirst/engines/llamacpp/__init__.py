"""The embedded engine: llama.cpp in child processes, one for each loaded model."""

from localfirst.engines.llamacpp.engine import LlamaCppEngine, installed

__all__ = ["LlamaCppEngine", "installed"]
