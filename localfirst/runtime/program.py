"""Programs of ours beside this one: started with a clean environment, ended as a group."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from localfirst.transport import process
from localfirst.transport.process import Child

__all__ = ["Child", "start"]


def start(
    words: Sequence[str],
    *,
    module: str = "localfirst",
    variables: Mapping[str, str] = {},
    on_stdout: Callable[[bytes], object] | None = None,
) -> Child:
    """
    Run `python -m MODULE WORDS…` with this very Python; needs a running loop.

    Args:
        words: its arguments.
        module: what to run.
        variables: set on top of the little that a child inherits (never a key).
        on_stdout: gets its stdout; `Child.log` has the rest.
    """
    argv = [sys.executable, "-m", module, *words]
    environ = process.child_environ(process.environ(), {"PYTHONUTF8": "1", **variables})
    # An open pipe as stdin tells it by its end that this process is gone.
    return process.spawn(argv, env=environ, stdin=b"", on_stdout=on_stdout)
