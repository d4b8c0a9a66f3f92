"""
A model's name: `[host/][namespace/]model[:tag]`, and where it lies.

The grammar is Ollama's (ollama/ollama `types/model/name.go`). No part can be `.`, `..` or
hidden, so a name never leads out of the store. Pure.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec

from localfirst.errors import ModelNameInvalid

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# First a letter, digit or underscore; then also dashes, and dots and colons where allowed.
# `fullmatch` over ASCII classes: `\w` takes full-width letters and `$` a trailing newline.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SCHEMES = ("https://", "http://")


class ModelName(msgspec.Struct, frozen=True, kw_only=True):
    """A complete name; `scheme` is "http", "https" or "" when the text said none."""

    host: str = DEFAULT_HOST
    namespace: str = DEFAULT_NAMESPACE
    model: str
    tag: str = DEFAULT_TAG
    scheme: str = ""

    @property
    def full(self) -> str:
        """`host/namespace/model:tag`, without the scheme."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def display(self) -> str:
        """The shortest spelling that means the same, as `ollama list` prints it."""
        short = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{short}"
        return short

    @property
    def key(self) -> str:
        """Equal for spellings that differ only in case."""
        return self.full.lower()

    @property
    def path(self) -> PurePosixPath:
        """Where the manifest lies under `manifests/`."""
        return PurePosixPath(self.host, self.namespace, self.model, self.tag)

    @property
    def is_remote(self) -> bool:
        """Whether Ollama would send this model's prompts to its own cloud."""
        return self.tag == "cloud" or self.tag.endswith("-cloud")

    def __str__(self) -> str:
        return self.display


def parse(text: str) -> ModelName:
    """
    Read a name as people type it.

    Raises:
        ModelNameInvalid: naming the part that is wrong.
    """
    rest, tag = _cut_last(text, ":", unless_after="/")
    rest, model = _cut_last(rest, "/")
    host: str | None = None
    namespace: str | None = None
    if model is None:
        model = rest
    else:
        host, namespace = _cut_last(rest, "/")
        if namespace is None:
            host, namespace = None, rest
    scheme, host = _cut_scheme(host)
    return ModelName(
        host=_checked("host", _HOST, host, DEFAULT_HOST, text),
        namespace=_checked("namespace", _NAMESPACE, namespace, DEFAULT_NAMESPACE, text),
        model=_checked("model", _PART, model, "", text),
        tag=_checked("tag", _PART, tag, DEFAULT_TAG, text),
        scheme=scheme,
    )


def from_parts(host: str, namespace: str, model: str, tag: str) -> ModelName:
    """A name from the four folder names of a manifest's path; raises `ModelNameInvalid`."""
    text = f"{host}/{namespace}/{model}:{tag}"
    return ModelName(
        host=_checked("host", _HOST, host, "", text),
        namespace=_checked("namespace", _NAMESPACE, namespace, "", text),
        model=_checked("model", _PART, model, "", text),
        tag=_checked("tag", _PART, tag, "", text),
    )


def is_valid(text: str) -> bool:
    """Whether *text* parses."""
    try:
        parse(text)
    except ModelNameInvalid:
        return False
    return True


def _cut_last(text: str, mark: str, *, unless_after: str = "") -> tuple[str, str | None]:
    """Split at the last *mark*; the second part is None where there is none."""
    at = text.rfind(mark)
    if at < 0 or (unless_after and at < text.rfind(unless_after)):
        return text, None
    return text[:at], text[at + 1 :]


def _cut_scheme(host: str | None) -> tuple[str, str | None]:
    for scheme in _SCHEMES:
        if host is not None and host.startswith(scheme):
            return scheme[:-3], host[len(scheme) :]
    return "", host


def _checked(what: str, grammar: re.Pattern[str], part: str | None, default: str, text: str) -> str:
    if part is None:
        return default
    if not grammar.fullmatch(part):
        shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:120])
        raise ModelNameInvalid(f"`{shown}` is no model name: its {what} is wrong", field="model")
    return part
