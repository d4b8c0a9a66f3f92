"""The frame around a command: its arguments, its loop, its errors, its exit code."""

from __future__ import annotations

import argparse
import asyncio
import errno
import inspect
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn, Protocol, cast

from localfirst import cli, config
from localfirst.cli import render
from localfirst.errors import InsufficientResources, LocalFirstError, Unavailable, UpstreamError

# As where a model is pulled, and as a file is told that was to be read and is not there.
EXIT_CODES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), InsufficientResources.exit_code),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG), cli.USAGE
    ),
}
ASK_THE_DOCTOR = "run `localfirst doctor`, which looks at the engine"


class Command(Protocol):
    """What a command's module has."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments."""

    def run(self, given: argparse.Namespace) -> int | Awaitable[int]:
        """Do it, on a loop or without; returns the exit code."""


class Parser(argparse.ArgumentParser):
    """argparse in our voice: `error: …`, a hint, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and leave."""
        render.problem(message, hint=f"run `{self.prog} --help`", code="usage")
        raise SystemExit(cli.USAGE)


def run(name: str, module: str, summary: str, words: list[str]) -> int:
    """Run the command of *module*; raises only what the top frame knows."""
    command = cast(Command, import_module(f"localfirst.cli.{module}"))
    parser = Parser(prog=f"localfirst {name}", description=summary, allow_abbrev=False)
    command.arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="one setting for this run, such as `privacy=local-only`",
    )
    try:
        given = parser.parse_args(words)
        at_the_end(end)
        return drive(command, given)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except LocalFirstError as error:
        return report(error)
    except UpstreamError as error:  # of an engine that was asked directly
        return report(Unavailable(f"the engine did not do it: {error}", hint=ASK_THE_DOCTOR))


def drive(command: Command, given: argparse.Namespace) -> int:
    """Call the command, on an event loop when it wants one."""
    if inspect.iscoroutinefunction(command.run):
        return asyncio.run(cancellable(command.run(given)))
    return cast(int, command.run(given))


async def cancellable(work: Coroutine[Any, Any, int]) -> int:
    """Do *work*, and have SIGTERM and SIGHUP cancel it as SIGINT does: nothing breaks midway."""
    loop, task, came = asyncio.get_running_loop(), asyncio.current_task(), []
    assert task is not None

    def cancel(number: int, _: object) -> None:
        came.append(number)
        task.cancel()
        loop.call_soon_threadsafe(lambda: None)  # wakes the loop where it waits for sockets

    at_the_end(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if came:
            end(came[0], None)
        raise


def at_the_end(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have *handler* called when we are to end; `nohup` has us outlive a terminal."""
    signal.signal(signal.SIGTERM, handler)
    hung_up = getattr(signal, "SIGHUP", None)
    if hung_up and signal.getsignal(hung_up) is not signal.SIG_IGN:
        signal.signal(hung_up, handler)


def end(number: int, _: object) -> NoReturn:
    """Leave through every `finally`, so that what we started is stopped."""
    raise SystemExit(cli.SIGNALLED + number)


def file_failed(error: OSError) -> LocalFirstError:
    """What the system did not let us do with a file, as an error of ours; cause kept."""
    reason = error.strerror or str(error)
    failed = LocalFirstError(
        f"`{error.filename}`: {reason}" if error.filename else reason,
        hint="check the path, its permissions, and the space left",
        code="file-failed",
    )
    failed.exit_code = EXIT_CODES.get(error.errno or 0, failed.exit_code)
    failed.__cause__ = error
    return failed


def report(error: LocalFirstError) -> int:
    """Print an error as people read it; returns its exit code."""
    if config.variable("LOCALFIRST_DEBUG"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    render.problem(error.message, hint=error.hint, code=error.code)
    return error.exit_code
