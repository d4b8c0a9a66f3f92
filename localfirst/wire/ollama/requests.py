"""Requests of Ollama's dialect: looked at, decoded, encoded."""

from localfirst.wire.ollama.encode import encode as encode
from localfirst.wire.ollama.encode import path_of as path_of
from localfirst.wire.peek import Peek as Peek
