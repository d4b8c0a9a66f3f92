"""
Who is to pull: we, into the store that we see, or the running Ollama, into its own.

A model in a store that nobody reads helps nobody. We pull when no Ollama runs, or when the
running one is known to read our store: its process is this user's and says so, or a model
that it lists lies here with that digest. Otherwise it pulls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from localfirst.models.store import Store, default_root
from localfirst.transport import http
from localfirst.wire.forgiving import UNREADABLE

ASK_S = 2.0


class _Tag(msgspec.Struct):
    name: str = ""
    digest: str = ""
    remote_host: str = ""


class _Tags(msgspec.Struct):
    models: list[_Tag] | None = None


async def route(url: str, store: Store) -> str:
    """
    The URL of the Ollama that is to pull, or "" where we do it ourselves.

    Args:
        url: where an Ollama may run; asked for its list, for at most two seconds.
        store: the store we would pull into.
    """
    found = await listed(url)
    if found is None:
        return ""
    if store.writable() or not http.is_loopback(urlsplit(url).hostname or ""):
        return url
    seen = reads(store, found)
    if seen is None:
        seen = any(root == _real(store.root) for root in own_ollama_roots())
    return "" if seen else url


async def listed(url: str, wait_s: float = ASK_S) -> dict[str, str] | None:
    """Name and digest of what the daemon at *url* lists; None when there is none."""
    import httpx

    try:
        async with http.client(url, connect_s=wait_s, read_s=wait_s) as client:
            answer = await client.get(url.rstrip("/") + "/api/tags")
        tags = msgspec.json.decode(answer.content, type=_Tags)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, *UNREADABLE):
        return None
    if answer.status_code != 200:
        return None
    return {tag.name: tag.digest for tag in tags.models or () if not tag.remote_host}


def reads(store: Store, theirs: Mapping[str, str]) -> bool | None:
    """
    Whether a daemon that lists *theirs* (name to digest) reads *store*; None = cannot tell.

    One model in common is proof for, one that only either of them has is proof against.
    """
    here = {model.name: model.digest for model in store.models()}
    if any(here.get(name) == digest for name, digest in theirs.items()):
        return True
    return False if here or theirs else None


def own_ollama_roots() -> Iterator[Path]:
    """The stores of the `ollama serve` processes that this user runs."""
    import psutil

    uid = os.getuid() if hasattr(os, "getuid") else None
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            if not (process.info["name"] or "").lower().startswith("ollama"):
                continue
            if "serve" not in (process.info["cmdline"] or []):
                continue
            if uid is None or process.uids().real == uid:
                yield _real(default_root(process.environ()))
        except (psutil.Error, OSError):
            continue


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
