"""Requests of OpenAI's chat dialect: looked at, decoded, encoded, passed on."""

from localfirst.wire.openai.decode import decode as decode
from localfirst.wire.openai.encode import encode as encode
from localfirst.wire.openai.encode import splice as splice
from localfirst.wire.openai.look import peek as peek
from localfirst.wire.openai.look import wants_usage as wants_usage
from localfirst.wire.peek import Peek as Peek
