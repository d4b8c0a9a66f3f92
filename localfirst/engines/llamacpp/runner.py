"""
One model in one child process: started, asked, watched, ended.

A runner is made ready once and is never repaired: when its child dies the engine throws it
away and makes another for the next request.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Mapping

import msgspec

from localfirst.engines.llamacpp.plan import ChildPlan
from localfirst.errors import Breakage, Unavailable, UpstreamBroken, UpstreamError
from localfirst.machine.fit import Fit
from localfirst.transport import process
from localfirst.transport.childlog import RotatedFile
from localfirst.types import Clock

STOP_GRACE_S = 2.0


class Runner:
    """
    A child and the address it listens on.

    `in_flight` and `last_used` are written by the engine alone; `keep_alive_s` is what the
    last request asked for, negative for ever; `tight` says that it barely fits the memory;
    `predicted` is what the load was expected to take, for comparison. `asked_tokens` is the
    context that was wished for, which memory may have made shorter; `doubted` says that an
    answer of it was given up, so that it is asked for its health before the next one, and
    `mourned` that its death was noted. `spoke` are the tokens and seconds of the last
    answer that had the child to itself.
    """

    def __init__(
        self, plan: ChildPlan, clock: Clock, keep_alive_s: float, *, tight: bool = False
    ) -> None:
        self.plan = plan
        self.tight = tight
        self.key = secrets.token_hex(16)
        self.address = ""
        self.in_flight = 0
        self.asked_tokens = plan.context_tokens
        self.doubted = False
        self.mourned = False
        self.keep_alive_s = keep_alive_s
        self.last_used = clock.monotonic()
        self.child: process.Child | None = None
        self.predicted: Fit | None = None
        self.spoke = (0, 0.0)
        self._clock = clock
        self._said = bytearray()
        self._first_line = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether the child runs and has its model loaded."""
        return self.child is not None and self.child.alive and bool(self.address)

    @property
    def idle_at(self) -> float:
        """The monotonic instant at which it may be unloaded; infinity while it is at work."""
        if self.in_flight or self.keep_alive_s < 0:
            return float("inf")
        return self.last_used + self.keep_alive_s

    async def start(
        self, environ: Mapping[str, str], load_s: float, log: RotatedFile | None = None
    ) -> None:
        """
        Start the child and wait until its model is loaded.

        Raises:
            Unavailable: llama.cpp refused the model; says why.
            UpstreamBroken: it died, or was not ready after *load_s*.
        """
        extra = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            self.child = process.spawn(
                [sys.executable, "-P", "-m", "localfirst.engines.llamacpp_child"],
                env=process.child_environ(environ, extra),
                stdin=self._settings(),
                on_stdout=self._hear,
                file=log,
            )
        except OSError as error:
            raise UpstreamBroken(Breakage.ENGINE_DIED, f"cannot start: {error}") from error
        try:
            await self._until_loaded(self.child, load_s)
        except BaseException:
            await self.stop(grace_s=0)
            raise

    def _settings(self) -> bytes:
        settings = msgspec.to_builtins(self.plan) | {"key": self.key, "parent": os.getpid()}
        return msgspec.json.encode(settings) + b"\n"

    def _hear(self, data: bytes) -> None:
        if len(self._said) < 2**16:
            self._said += data
        if b"\n" in self._said:
            self._first_line.set()

    async def _until_loaded(self, child: process.Child, load_s: float) -> None:
        heard = asyncio.ensure_future(self._first_line.wait())
        ended = asyncio.ensure_future(child.wait())
        try:
            done, _ = await asyncio.wait(
                {heard, ended}, timeout=load_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            heard.cancel()
            ended.cancel()
        if not done:
            raise UpstreamBroken(
                Breakage.FIRST_BYTE_TIMEOUT, f"the model was not loaded after {load_s:g} s"
            )
        await child.drained(0.0 if child.alive else 0.5)
        if not self._first_line.is_set():
            raise self.death()
        self._read_first_line(child)

    def _read_first_line(self, child: process.Child) -> None:
        said = msgspec.json.decode(bytes(self._said).partition(b"\n")[0])
        if "error" in said:
            reason = self._reason(child) or str(said["error"])
            raise Unavailable(
                f"`{self.plan.alias}` cannot be loaded: {reason}",
                hint=f"run `localfirst verify --repair {self.plan.alias}`",
                code="model-load-failed",
            )
        self.address = str(said["address"])

    def _reason(self, child: process.Child) -> str:
        """llama.cpp's own words: the exception only says that loading failed."""
        telling = [line for line in child.log.tail(60) if " E " in line]
        return " / ".join(line.split(" E ", 1)[1].strip() for line in telling[:2])

    def death(self) -> UpstreamError:
        """What to raise when the child is gone; names the signal and its last words."""
        how = self.child.ending if self.child else "is gone"
        return UpstreamBroken(Breakage.ENGINE_DIED, f"the engine's process {how}")

    async def died_within(self, seconds: float) -> bool:
        """Whether the child is gone, or goes within *seconds*: sockets break a little earlier."""
        if self.child is None:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self.child.wait()
        except TimeoutError:
            return False
        return True

    def resident_bytes(self) -> int:
        """What the child takes of the RAM now, as the system counts it; 0 when it is gone."""
        if self.child is None or not self.child.alive:
            return 0
        return process.resident_bytes(self.child.pid)

    def touch(self) -> None:
        """Note that it is used now."""
        self.last_used = self._clock.monotonic()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the child and give its pipes back; idempotent, and survives cancellation."""
        child, self.address = self.child, ""
        if child is None:
            return
        if grace_s <= 0:
            child.kill()
        await asyncio.shield(asyncio.ensure_future(child.stop(grace_s)))
        child.close()
