"""Ollama: a daemon that is asked over its native API, one or several of them."""

from localfirst.engines.ollama.engine import OllamaEngine
from localfirst.engines.ollama.hosts import OllamaHosts

__all__ = ["OllamaEngine", "OllamaHosts"]
