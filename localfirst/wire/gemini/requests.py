"""Requests of Gemini's dialect."""

from localfirst.wire.gemini.encode import encode as encode
from localfirst.wire.gemini.encode import encode_embeddings as encode_embeddings
from localfirst.wire.gemini.encode import path_of as path_of
