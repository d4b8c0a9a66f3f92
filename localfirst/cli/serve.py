"""`localfirst serve`: the gateway, in the foreground."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from localfirst.cli import render, session
from localfirst.settings import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on")
    parser.add_argument("--port", metavar="N", help="port to listen on, 0 chooses a free one")
    parser.add_argument("--workers", metavar="N", help="processes")
    parser.add_argument("--log-requests", action="store_true", help="a line each, on stderr")
    parser.add_argument(
        "--local-only",
        action="store_const",
        const="local-only",
        help="no request leaves this machine",
    )


def run(given: argparse.Namespace) -> int:
    """Serve until a signal ends it; SIGHUP reads the configuration again."""
    # Gateway and commands are neighbours that know nothing of each other: it is named, as
    # the commands are, and not imported.
    server = import_module("localfirst.gateway.server")
    code: int = server.serve(
        settings_of(given),
        say=render.say,
        access=sys.stderr.write if given.log_requests else None,
        reload=lambda: settings_of(given),
    )
    return code


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings as files, variables and flags say now."""
    flags = {
        "gateway.host": given.host,
        "gateway.port": given.port,
        "gateway.workers": given.workers,
        "privacy": given.local_only,
    }
    return session.loaded(given, flags).settings
