"""
Unit files that keep the gateway running for one user: systemd and launchd, as pure text.

Nothing here writes or starts anything. Keys do not belong into these files: they stay in
the configuration, which the service reads as the command line does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from localfirst.errors import ConfigError

NAME = "localfirst"
LABEL = "dev.localfirst.gateway"


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A service file: where it belongs, what it says, and the commands that start it."""

    path: Path
    text: str
    commands: tuple[tuple[str, ...], ...]


def unit(
    platform: str,
    home: Path,
    argv: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stop_s: float = 20.0,
) -> Unit:
    """
    The unit for this kind of system.

    Args:
        platform: as `sys.platform` says it.
        home: the user's home.
        argv: the command to run, its first word an absolute path.
        environ: variables the service needs and that are no secrets.
        folder: where it runs, when that matters.
        stop_s: seconds it gets to end.

    Raises:
        ConfigError: no user services are known for this platform.
    """
    given = dict(environ or {})
    if platform.startswith("linux"):
        return Unit(
            path=home / ".config/systemd/user" / f"{NAME}.service",
            text=systemd(argv, given, folder=folder, stop_s=stop_s),
            commands=(
                ("systemctl", "--user", "daemon-reload"),
                ("systemctl", "--user", "enable", "--now", NAME),
            ),
        )
    if platform == "darwin":
        path = home / "Library/LaunchAgents" / f"{LABEL}.plist"
        log = home / "Library/Logs/localfirst.log"
        return Unit(
            path=path,
            text=launchd(argv, given, log=log, folder=folder, stop_s=stop_s),
            commands=(("launchctl", "load", "-w", str(path)),),
        )
    raise ConfigError(
        f"no service file is known for `{platform}`",
        hint="start `localfirst serve` from the task scheduler",
        code="service-unsupported",
    )


def systemd(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    folder: Path | None = None,
    stop_s: float = 20.0,
) -> str:
    """
    A systemd user unit.

    `exec` because the gateway is ready within a second and has no readiness protocol;
    `mixed` so that the gateway itself ends the engine it started; a broken configuration
    (exit code 2) does not mend itself by another start.
    """
    variables = "".join(
        f"Environment={_systemd_word(f'{name}={value}', dollar='$')}\n"
        for name, value in sorted(environ.items())
    )
    command = " ".join(_systemd_word(word) for word in argv)
    # A path to the end of the line, not a word: it is not quoted (systemd.exec(5)).
    place = f"WorkingDirectory={str(folder).replace('%', '%%')}\n" if folder else ""
    return f"""\
[Unit]
Description=localfirst: answers LLM requests from this machine first
After=network.target

[Service]
Type=exec
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
{place}{variables}Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec={stop_s:g}
NoNewPrivileges=yes
LimitNOFILE=65536
UMask=0077

[Install]
WantedBy=default.target
"""


def launchd(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    log: Path,
    folder: Path | None = None,
    stop_s: float = 20.0,
) -> str:
    """A launchd user agent; launchd restarts it unless it ended in order."""
    words = "".join(f"    <string>{escape(word)}</string>\n" for word in argv)
    variables = "".join(
        f"    <key>{escape(name)}</key><string>{escape(value)}</string>\n"
        for name, value in sorted(environ.items())
    )
    place = (
        f"  <key>WorkingDirectory</key><string>{escape(str(folder))}</string>\n" if folder else ""
    )
    return f"""\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" \
"http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>{LABEL}</string>
  <key>ProgramArguments</key>
  <array>
{words}  </array>
  <key>EnvironmentVariables</key>
  <dict>
{variables}  </dict>
{place}  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key><false/>
  </dict>
  <key>ExitTimeOut</key><integer>{round(stop_s)}</integer>
  <key>Umask</key><integer>63</integer>
  <key>StandardErrorPath</key><string>{escape(str(log))}</string>
</dict>
</plist>
"""


def _systemd_word(word: str, *, dollar: str = "$$") -> str:
    """
    A word as systemd reads it: quoted, its specifiers and variables taken literally.

    Variables are replaced in commands only (systemd.exec(5), `Environment=`).
    """
    plain = word.replace("%", "%%").replace("$", dollar)
    if plain and not set(plain) & set(" \t\n\"'\\;"):
        return plain
    inside = plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{inside}"'
