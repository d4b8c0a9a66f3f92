"""
`localfirst doctor --offline`: the proof that this machine answers without a network.

A guard is put into this process that refuses every connection and name that is not this
machine's own; then a model is verified bit by bit and asked for one real token. The engine
is another process: it is asked on loopback, and what it does itself is not guarded.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import sys
from typing import TYPE_CHECKING, Any

from localfirst.cli import progress, render, session
from localfirst.errors import EngineUnavailable, LocalFirstError, VerificationFailed
from localfirst.types import Json

if TYPE_CHECKING:
    from localfirst.client import AsyncClient
    from localfirst.runtime import Runtime

CUT = {"offline": True, "privacy": "local-only"}
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0}
"""Audit events of Python's sockets, and where each has its address."""


async def run(given: argparse.Namespace) -> int:
    """Prove it; exit code 0 when a token came, 3 when it could not, 5 for damaged bytes."""
    cut_off()
    proof = Proof(as_json=given.json)
    try:
        async with session.client(given, CUT) as client:
            await prove(client, proof)
    except LocalFirstError as error:
        proof.end(error)
        return error.exit_code
    proof.end(None)
    return 0


def cut_off() -> None:
    """Refuse, for the rest of this process, whatever would leave this machine."""

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and not own(arguments[EVENTS[event]]):
            raise OSError(errno.ENETUNREACH, "the network is cut off by `doctor --offline`")

    sys.addaudithook(guard)


def own(address: object) -> bool:
    """Whether an address or name is this machine's own."""
    host = address[0] if isinstance(address, tuple) and address else address
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host in {"", "localhost"} or "/" in host or "\0" in host:
        return True  # no host at all: a path, a kernel's socket
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


class Proof:
    """Tells each link of the chain when it holds."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._links: list[dict[str, Json]] = []

    def holds(self, link: str, evidence: str) -> None:
        """One link holds."""
        now = self._loop.time()
        took, self._last = now - self._last, now
        self._links.append({"link": link, "evidence": evidence, "took_s": took})
        if not self._as_json:
            mark = render.paint("ok", render.GREEN)
            print(f"{mark} {render.span(took):>7}  {link:<8}  {render.plain(evidence)}", flush=True)

    def end(self, error: LocalFirstError | None) -> None:
        """The chain held, or the link after the last one broke."""
        if self._as_json:
            broken = error and {"code": error.code, "message": error.message, "hint": error.hint}
            render.as_json({"offline": error is None, "proof": self._links, "error": broken})
        elif error is None:
            print(f"\n{render.paint('this machine answers without a network', render.GREEN)}")
        if error is not None:
            render.problem(
                f"without a network this machine cannot answer: {error.message}",
                hint=error.hint,
                code=error.code,
            )


async def prove(client: AsyncClient, proof: Proof) -> None:
    """Every link in order; raises at the first that breaks."""
    runtime = await client.opened()
    proof.holds("network", "cut off for this process")
    status = await runtime.engine.status(max_age_s=0)
    if not (status.ready or status.can_start):
        raise EngineUnavailable(status.reason or "no local engine is installed")
    proof.holds("engine", f"{status.kind} {status.version}".strip() + f", {status.state}")
    name = await chosen(client)
    proof.holds("model", f"{name} is installed and fits")
    await verify(runtime, name, proof)
    reply = await client.chat("Say yes.", model=name, max_tokens=1, fallback=False)
    tokens = reply.usage.completion_tokens
    proof.holds("answer", f"{reply.route} generated {tokens or 1} token")


async def chosen(client: AsyncClient) -> str:
    """The model that a request would get."""
    plan = await client.explain("local", local_only=True)
    for step in plan.ready:
        if str(step.target.rung) == "local":
            return step.target.model
    reasons = "; ".join(step.reason for step in plan.steps) or "none is installed"
    raise EngineUnavailable(
        f"no model can answer: {reasons}",
        hint="while there is a network, `localfirst pull llama3.2:1b`",
        code="no-local-model",
    )


async def verify(runtime: Runtime, name: str, proof: Proof) -> None:
    """Hash the model's every byte, when its store can be read from here."""
    from localfirst.runtime import provision

    if runtime.store.find(name) is None:
        proof.holds("bytes", "not verified: the engine keeps its models elsewhere")
        return
    check = provision.Verification(runtime.store, [name])
    await progress.watch(check, f"verifying {name}")
    if check.result is None or not check.result.ok:
        raise VerificationFailed(
            f"`{name}` is damaged", hint=f"run `localfirst verify --repair {name}`"
        )
    proof.holds("bytes", f"{render.size(check.total_bytes)} match their digests")
