"""`localfirst serve`: the gateway, in the foreground."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from localfirst import cli, config
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
    parser.add_argument(
        "--install-service",
        action="store_true",
        help="write a service file for this user, so that it starts with the session",
    )
    parser.add_argument("--print", action="store_true", help="only show that service file")


def run(given: argparse.Namespace) -> int:
    """Serve until a signal ends it; SIGHUP reads the configuration again."""
    if given.install_service or given.print:
        return install(given)
    # Gateway and commands are neighbours that know nothing of each other: it is named, as
    # the commands are, and not imported.
    server = import_module("localfirst.gateway.server")
    code: int = server.serve(
        settings_of(given),
        say=lambda line: tell(f"{line}\n"),
        access=tell if given.log_requests else None,
        reload=lambda: settings_of(given),
    )
    return code


def tell(lines: str) -> None:
    """Whole lines to stderr, until nobody reads them: a closed log ends no gateway."""
    try:
        sys.stderr.write(lines)
        sys.stderr.flush()
    except OSError:
        cli.mute(sys.stderr.fileno())


def install(given: argparse.Namespace) -> int:
    """Write (or only show) the service file, and tell the commands that switch it on."""
    settings_of(given)  # a configuration that cannot be served is not installed
    words = [sys.executable, "-m", "localfirst", "serve"]
    for flag in ("host", "port", "workers"):
        if value := getattr(given, flag):
            words += [f"--{flag}", str(value)]
    if given.local_only:
        words.append("--local-only")
    own = {"LOCALFIRST_CONFIG": config.variable("LOCALFIRST_CONFIG")}
    unit = import_module("localfirst.gateway.service").unit(
        sys.platform, Path.home(), words, environ={name: v for name, v in own.items() if v}
    )
    if given.print:
        print(unit.text, end="")
        return 0
    unit.path.parent.mkdir(parents=True, exist_ok=True)
    unit.path.write_text(unit.text)
    render.say(f"wrote {unit.path}; switch it on with:")
    for command in unit.commands:
        print(" ".join(command))
    return 0


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings as files, variables and flags say now."""
    flags = {
        "gateway.host": given.host,
        "gateway.port": given.port,
        "gateway.workers": given.workers,
        "privacy": given.local_only,
    }
    return session.loaded(given, flags).settings
