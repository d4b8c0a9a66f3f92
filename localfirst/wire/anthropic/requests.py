"""Requests of Anthropic's dialect: looked at, decoded, encoded, passed on."""

from localfirst.wire.anthropic.decode import decode as decode
from localfirst.wire.anthropic.decode import decode_count as decode_count
from localfirst.wire.anthropic.encode import encode as encode
from localfirst.wire.anthropic.encode import splice as splice
from localfirst.wire.anthropic.look import peek as peek
from localfirst.wire.peek import Peek as Peek
