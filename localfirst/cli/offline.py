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

from localfirst.cli import progress, session
from localfirst.errors import LocalFirstError

if TYPE_CHECKING:
    from localfirst.client import AsyncClient
    from localfirst.runtime import Runtime
    from localfirst.runtime.checkup import Proof, Report

CUT = {"offline": True, "privacy": "local-only"}
EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}
"""Audit events of Python's sockets, and where each has its address."""


async def prove(given: argparse.Namespace) -> Report:
    """Cut this process off, verify the model that would answer, and have it answer."""
    from localfirst.runtime import checkup

    cut_off()
    proof, damaged = None, False
    async with session.client(given, CUT) as client:
        runtime = await client.opened()
        name = await chosen(client)
        if name:
            damaged = not await whole(runtime, name)
            proof = await token(client, name)
        return await checkup.examine(
            runtime, offline=True, proof=proof, damaged=(name,) if damaged else ()
        )


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


async def chosen(client: AsyncClient) -> str:
    """The model that a request would get, "" when none can answer."""
    plan = await client.explain("local", local_only=True)
    return next((step.target.model for step in plan.ready if step.target.provider == "local"), "")


async def whole(runtime: Runtime, name: str) -> bool:
    """Hash the model's every byte; a store that cannot be read from here is not judged."""
    from localfirst.runtime import provision

    if runtime.store.find(name) is None:
        return True
    check = provision.Verification(runtime.store, [name])
    await progress.watch(check, f"verifying {name}")
    return check.result is not None and check.result.ok


async def token(client: AsyncClient, name: str) -> Proof:
    """One real token of *name*, or why it did not come."""
    from localfirst.runtime.checkup import Proof

    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        reply = await client.chat("Say yes.", model=name, max_tokens=1, fallback=False)
    except LocalFirstError as error:
        return Proof(model=name, error=error.message.replace("\n", "; "))
    tokens = reply.usage.completion_tokens or 1
    return Proof(model=name, tokens=tokens, duration_s=loop.time() - began)
