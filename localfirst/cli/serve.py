"""`localfirst serve`: the gateway, in the foreground."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from localfirst import cli, config
from localfirst.cli import drafts, render, session
from localfirst.config import Loaded
from localfirst.errors import ConfigError
from localfirst.settings import Settings

CLOSE_S = 10.0
"""What a service gets to close its engine, beyond `gateway.drain_s` for running answers."""


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
    found = loaded(given)  # a configuration that cannot be served is not installed
    taken = config.carried(found)
    unit = import_module("localfirst.gateway.service").unit(
        sys.platform,
        Path.home(),
        command(given),
        environ=taken.variables,
        folder=taken.folder,
        stop_s=found.settings.gateway.drain_s + CLOSE_S,
    )
    for name in taken.secrets:
        render.warn(
            f"the service will not see `{name}`, which this shell has: "
            f"write the key into `{found.config_file}`"
        )
    for name in taken.passwords:
        render.warn(
            f"the service will not see `{name}`: the password in it does not belong into "
            "a service file; add it to the service by hand"
        )
    if given.print:
        print(unit.text, end="")
        return 0
    drafts.write(unit.path, unit.text, mode=0o644)
    render.say(f"wrote {unit.path}; switch it on with:")
    for words in unit.commands:
        print(" ".join(words))
    return 0


def command(given: argparse.Namespace) -> list[str]:
    """
    The words that serve as this run would.

    Raises:
        ConfigError: `--set` has a key, which does not belong into a service file.
    """
    words = [sys.executable, "-m", "localfirst", "serve"]
    for flag in ("host", "port", "workers"):
        if value := getattr(given, flag):
            words += [f"--{flag}", str(value)]
    words += ["--local-only"] * bool(given.local_only)
    words += ["--log-requests"] * given.log_requests
    secret = {setting.path for setting in config.SETTINGS if setting.secret}
    for word in given.set:
        path = word.partition("=")[0].strip()
        if path in secret:
            raise ConfigError(
                f"`--set {path}=…` would write a key into the service file",
                setting=path,
                source="--set",
                hint=f"write `{path}` into config.toml, which `localfirst config` names",
                code="usage",
            )
        words += ["--set", word]
    return words


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings as files, variables and flags say now."""
    return loaded(given).settings


def loaded(given: argparse.Namespace) -> Loaded:
    """The same, with where each comes from."""
    flags = {
        "gateway.host": given.host,
        "gateway.port": given.port,
        "gateway.workers": given.workers,
        "privacy": given.local_only,
    }
    return session.loaded(given, flags)
