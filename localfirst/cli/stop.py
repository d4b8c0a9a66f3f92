"""`localfirst stop`: end the gateway that listens here, and with it what it started."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from localfirst.cli import render, running, session

LOOK_EVERY_S = 0.2
GRACE_S = 5.0
"""Beyond the gateway's own `drain_s`, in which running answers may finish."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--port", metavar="N", help="of the gateway to stop")


def run(given: argparse.Namespace) -> int:
    """Ask it to end and wait; exit code 3 when none runs here."""
    import psutil

    gateway = session.loaded(given, {"gateway.port": given.port}).settings.gateway
    found = [one for one in psutil.process_iter() if running.serves(one, gateway.port)]
    if not found:
        render.say(f"no gateway of yours listens on port {gateway.port}")
        return 3
    for one in heads(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    left = found
    for _ in range(int((gateway.drain_s + GRACE_S) / LOOK_EVERY_S)):
        _, left = psutil.wait_procs(left, timeout=LOOK_EVERY_S)
        left = [one for one in left if not ended(one)]
        if not left:
            break
    if left:
        render.problem("the gateway did not end", hint=f"see process {left[0].pid}")
        return 1
    render.say(f"stopped the gateway on port {gateway.port}")
    return 0


def heads(found: list[Any]) -> list[Any]:
    """Those that answer to none of the others: a worker told twice would not wait for answers."""
    import psutil

    pids = {one.pid for one in found}
    told = []
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.ppid() not in pids:
                told.append(one)
    return told


def ended(process: Any) -> bool:
    """Whether a process is over, be it that nobody has taken note of it yet."""
    import psutil

    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
