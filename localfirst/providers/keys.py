"""Keys: which ones are real, which one a target means, and how they stay out of every text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from localfirst.settings import Secret

SHORTEST = 4
"""What stands behind a prefix is longer in every cloud's keys."""

HIDDEN = b"[key]"
HIDDEN_FROM = 6
"""Shorter values are words of many texts; replacing them would garble what a cloud says."""

# Short words stand alone, long ones anywhere: no random key spells a long word by chance.
_WORDS = re.compile(
    r"(?<![a-z0-9])(your|todo|tu|my)(?=[-_ ](api|key|secret|token|clave))|your(api)?key|tu_?clave|"
    r"(?<![a-z0-9])(dummy|paste)(?![a-z0-9])|"
    r"example|placeholder|change[-_ ]?me|insert|replace|sample|api[-_ ]?key|"
    r"x{5,}|\*{3}|\.{3}|…|[<>{}\s]|\$\(|^(none|null|undefined|test)$",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^(sk-or-v1-|sk-ant-api03-|sk-or-|sk-ant-|sk-proj-|sk-|gsk_|hf_|AIza|csk-|"
                     r"nvapi-|xai-|fw_)")  # fmt: skip


def looks_like_placeholder(value: str) -> bool:
    """
    Whether *value* is what a template says where a key should stand: `your_key_here`, `sk-…`.

    A key that merely looks odd is no placeholder: only words, ellipses and one character
    over and over count.
    """
    value = value.strip().strip("'\"").strip()
    rest = _PREFIX.sub("", value)
    if len(rest) < SHORTEST:
        return True
    return bool(_WORDS.search(rest)) or len(set(rest.lower())) < 3


def is_sendable(value: str) -> bool:
    """Whether *value* can stand in a header: visible ASCII without blanks."""
    return value.isascii() and value.isprintable() and " " not in value and bool(value)


def usable(secrets: Iterable[Secret], *, own_server: bool = False) -> tuple[Secret, ...]:
    """The keys that are worth sending, in their order; the user's own server may take any."""
    return tuple(
        secret
        for secret in secrets
        if is_sendable(secret.reveal())
        and (own_server or not looks_like_placeholder(secret.reveal()))
    )


def chosen(secrets: Sequence[Secret], label: str) -> Secret | None:
    """The key that *label* names; the first when it names none, None without keys."""
    for secret in secrets:
        if secret.label == label:
            return secret
    return secrets[0] if secrets else None


def redacted(text: bytes, secrets: Iterable[Secret]) -> bytes:
    """*text* without any of the keys: clouds echo them in their refusals."""
    for secret in secrets:
        value = secret.reveal().encode()
        if len(value) >= HIDDEN_FROM and value in text:
            text = text.replace(value, HIDDEN)
    return text
