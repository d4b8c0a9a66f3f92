"""Requests of Ollama's dialect: looked at, decoded, encoded."""

from localfirst.wire.ollama.decode import asks_to_load as asks_to_load
from localfirst.wire.ollama.decode import asks_to_unload as asks_to_unload
from localfirst.wire.ollama.decode import decode as decode
from localfirst.wire.ollama.decode import decode_generate as decode_generate
from localfirst.wire.ollama.encode import encode as encode
from localfirst.wire.ollama.encode import path_of as path_of
from localfirst.wire.ollama.look import peek as peek
from localfirst.wire.peek import Peek as Peek
