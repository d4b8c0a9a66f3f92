"""
A pull that a running Ollama does into a store that is not ours to write; we watch and judge.

A stream counts as done only with `{"status":"success"}` and the model in `/api/tags`.
Silence is cut and asked for again, as is a download that just died of somebody's hang-up
(`context canceled`); what goes backwards is not shown. The daemon keeps what it fetched
when we leave, mostly (ollama/ollama `server/download.go`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from localfirst.errors import (
    DigestMismatch,
    InsufficientResources,
    LocalFirstError,
    PullError,
    PullStalled,
    RegistryRefused,
    UpstreamBroken,
)
from localfirst.models.daemon_route import listed
from localfirst.models.manifest import Layer, ManifestInvalid, normal_digest
from localfirst.models.names import ModelName
from localfirst.models.pull_errors import broken, clean, refused
from localfirst.models.pull_job import JobState, PullJob
from localfirst.transport import http
from localfirst.types import Clock
from localfirst.wire.forgiving import UNREADABLE
from localfirst.wire.framing import NdjsonDecoder

if TYPE_CHECKING:
    import httpx

# The daemon cuts a stalled part itself after 30 s and begins it again; three times that
# without one more byte is no hiccup.
STALL_S = 90.0
TRIES = 3
PAUSE_S = 1.0
LIST_S = 10.0


class _Line(msgspec.Struct):
    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str = ""


class DaemonPull:
    """Drives `/api/pull` of the Ollama at *url* for jobs of a `Puller`."""

    def __init__(
        self, url: str, *, clock: Clock, stall_s: float = STALL_S, pause_s: float = PAUSE_S
    ) -> None:
        self.url = url.rstrip("/")
        self._host = urlsplit(url).hostname or url
        self._clock = clock
        self._stall_s = stall_s
        self._pause_s = pause_s

    async def pull(self, job: PullJob, ref: ModelName, *, insecure: bool = False) -> None:
        """
        Have the daemon fetch *ref*, and *job* show how far it is.

        Raises:
            RegistryRefused, InsufficientResources, DigestMismatch, PullStalled, PullError.
        """
        for remaining in reversed(range(TRIES)):
            try:
                await self._once(job, ref, insecure)
                break
            except PullError as error:
                if not remaining or not _worth_again(error):
                    raise
                await self._clock.sleep(self._pause_s)
        job.turn(JobState.VERIFYING)
        if not await self._lists(ref):
            raise PullError(
                f"ollama said success, but does not list `{ref.display}`",
                hint="look into Ollama's log, and pull again",
                code="pull-not-listed",
            )

    async def _once(self, job: PullJob, ref: ModelName, insecure: bool) -> None:
        host = urlsplit("//" + ref.host).hostname or ""
        plain = insecure or ref.scheme == "http" or http.is_loopback(host)
        body = msgspec.json.encode({"model": ref.display, "insecure": plain, "stream": True})
        seen, succeeded = "", False
        lines = self._lines(body)
        try:
            while True:
                # Lines come many times a second even when nothing moves; what counts is change.
                async with asyncio.timeout(self._stall_s):
                    seen, line = await _changed(lines, seen)
                if line is None:
                    break
                succeeded = line.status == "success"
                self._show(job, line)
        except TimeoutError:
            raise PullStalled(f"ollama made no progress in {self._stall_s:g} s") from None
        finally:
            await lines.aclose()
        if not succeeded:
            raise PullError(
                "ollama ended the download without a word of success", code="pull-incomplete"
            )

    async def _lines(self, body: bytes) -> AsyncGenerator[_Line, None]:
        """The daemon's lines; raises for an error line, and for anything that is no line."""
        import httpx

        decoder = NdjsonDecoder()
        try:
            async with (
                http.client(self.url, read_s=self._stall_s) as client,
                client.stream("POST", f"{self.url}/api/pull", content=body) as response,
            ):
                if response.status_code != 200:
                    said = (await _start_of(response)).decode(errors="replace")
                    raise judged(said, self._host, response.status_code)
                async for chunk in response.aiter_raw():
                    for frame in decoder.feed(chunk):
                        yield _read(frame, self._host)
        except (httpx.HTTPError, OSError) as error:
            raise _unreachable(error, self._host) from error
        except UpstreamBroken as error:
            raise PullError(f"ollama's answer makes no sense: {error}") from error

    def _show(self, job: PullJob, line: _Line) -> None:
        """Put one line into the job; what it does not know is passed over."""
        state = JobState.VERIFYING if line.status.startswith("verifying") else JobState.PULLING
        with contextlib.suppress(ManifestInvalid):
            digest = normal_digest(line.digest)
            job.add_layer(
                Layer(media_type="", digest=digest, size_bytes=max(line.total, line.completed, 0))
            )
            job.set_completed(digest, line.completed)
            job.turn(state, digest)
            return
        if line.status.startswith(("verifying", "writing", "removing", "success")):
            job.fill()
        job.turn(state)

    async def _lists(self, ref: ModelName) -> bool:
        """Whether the daemon lists the model now."""
        found = await listed(self.url, LIST_S)
        if found is None:
            raise _broke_off(self._host, "it does not tell its models")
        return ref.display.lower() in map(str.lower, found)


async def _changed(lines: AsyncIterator[_Line], seen: str) -> tuple[str, _Line | None]:
    """The next line that says something new, or None at the end."""
    async for line in lines:
        now = repr(line)
        if now != seen:
            return now, line
    return seen, None


def _read(frame: bytes, host: str) -> _Line:
    try:
        line = msgspec.json.decode(frame, type=_Line)
    except UNREADABLE:
        shown = clean(frame[:200].decode(errors="replace"))
        raise PullError(f"`{host}` does not speak Ollama's protocol: {shown}") from None
    if line.error:
        raise judged(line.error, host)
    return line


def judged(said: str, host: str, status: int = 200) -> LocalFirstError:
    """The error for what an Ollama said; recorded texts of 0.33 in `tests/data`."""
    text = f"ollama: {clean(said)}"
    if "file does not exist" in said or "manifest unknown" in said:
        return refused(404, host, "the model")
    if "no space left on device" in said:
        return InsufficientResources(
            text,
            kind="disk",
            needed_bytes=0,
            available_bytes=0,
            hint="free some space where Ollama keeps its models, then pull again",
        )
    if "digest mismatch" in said:
        return DigestMismatch(text)
    if "newer version of Ollama" in said:
        return PullError(text, hint="update Ollama", code="ollama-too-old")
    if "no such host" in said or "lookup " in said:
        return RegistryRefused(
            text, hint="check the network of Ollama's machine", code="registry-dns"
        )
    if "unauthorized" in said or "access denied" in said:
        return RegistryRefused(text, status=401, code="registry-unauthorized")
    if "context canceled" in said:
        return PullError(text, code="pull-joined-a-dying-one")
    if status >= 400:
        return PullError(f"ollama answered {status}: {clean(said)}", code="ollama-refused")
    return PullError(text, code="ollama-pull-failed")


def _worth_again(error: PullError) -> bool:
    return isinstance(error, PullStalled | DigestMismatch) or error.code in {
        "pull-incomplete",
        "pull-joined-a-dying-one",
        "ollama-pull-failed",
        "ollama-unreachable",
    }


def _unreachable(error: Exception, host: str) -> PullError:
    cause = broken(error, host)
    return cause if isinstance(cause, PullStalled) else _broke_off(host, cause.message)


def _broke_off(host: str, why: str) -> PullError:
    return PullError(
        f"the Ollama at `{host}` broke off: {why}",
        hint="is it running? `localfirst doctor` tells",
        code="ollama-unreachable",
    )


async def _start_of(response: httpx.Response) -> bytes:
    """The first bytes of an error's body."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > 2000:
            break
    return body[:2000]
