"""`localfirst serve`: the gateway, in the foreground."""

from __future__ import annotations

import argparse
from importlib import import_module

from localfirst.cli import session


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    parser.add_argument("--port", metavar="N", help="port to listen on, 0 chooses a free one")
    parser.add_argument("--workers", metavar="N", help="processes")
    parser.add_argument(
        "--local-only",
        action="store_const",
        const="local-only",
        help="no request leaves this machine",
    )


def run(given: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    settings = session.loaded(
        given,
        {
            "gateway.host": given.host,
            "gateway.port": given.port,
            "gateway.workers": given.workers,
            "privacy": given.local_only,
        },
    ).settings
    # Gateway and commands are neighbours that know nothing of each other: it is named, as
    # the commands are, and not imported.
    code: int = import_module("localfirst.gateway").serve(settings)
    return code
