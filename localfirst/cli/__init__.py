"""
The commands, one file each.

`COMMANDS` names each command's module, which is imported when its command runs: help costs
as little as Python itself. stdout is data, stderr is progress and messages.

    exit codes  0 ok · 1 failed · 2 usage or configuration · 3 not available now
                4 not enough disk or memory · 5 verification failed
                130 interrupted · 141 the reader of our output went away · 129, 143 ended
"""

from __future__ import annotations

import sys

# Command → (module, one line for the help), in the order of a first day.
COMMANDS: dict[str, tuple[str, str]] = {
    "selftest": ("selftest", "prove on this machine that the whole ladder works"),
    "serve": ("serve", "answer OpenAI, Ollama and Anthropic clients at one URL"),
    "stop": ("stop", "end the gateway that listens here"),
    "chat": ("chat", "ask once, or talk"),
    "explain": ("explain", "show who would answer, and why"),
    "doctor": ("doctor", "say what this machine can do and what is in the way"),
    "config": ("config", "show every setting and where it comes from"),
    "providers": ("providers", "list the clouds and the state of their keys"),
    "test": ("test", "ask one provider one real question"),
    "use": ("use", "put a rung of the ladder first"),
    "stats": ("stats", "show who answered, what it took, and what failed"),
    "escalations": ("escalations", "list what a human should know"),
    "recommend": ("recommend", "name the best models that this machine can run"),
    "pull": ("pull", "download models into Ollama's store"),
    "pulls": ("pulls", "list unfinished downloads, or give one up"),
    "list": ("list", "list the installed models"),
    "show": ("show", "show one installed model"),
    "ps": ("ps", "list the models in memory"),
    "unload": ("unload", "take a model out of memory"),
    "rm": ("rm", "remove installed models"),
    "verify": ("verify", "hash installed models again, and repair them"),
    "lock": ("lock", "pin models to their exact bytes"),
    "outdated": ("outdated", "tell which models have moved on in their registry"),
    "bundle": ("bundle", "carry models into a room without a network"),
}

# What other programs call it: letters alone would send whoever asks elsewhere.
MEANT = {
    **dict.fromkeys(("status", "check", "health"), "doctor"),
    **dict.fromkeys(("models", "ls"), "list"),
    **dict.fromkeys(("run", "ask", "talk"), "chat"),
    **dict.fromkeys(("start", "up", "gateway"), "serve"),
    **dict.fromkeys(("download", "install", "get"), "pull"),
    **dict.fromkeys(("remove", "delete", "uninstall"), "rm"),
    **dict.fromkeys(("settings", "set"), "config"),
    **dict.fromkeys(("why", "plan"), "explain"),
    **dict.fromkeys(("search", "find"), "recommend"),
}

USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
SIGNALLED = 128  # and the signal's number, as shells count


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the process's exit code and never raises on purpose."""
    words = sys.argv[1:] if argv is None else argv
    try:
        with_streams()
        code = dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:
        mute(sys.stdout.fileno())
        code = BROKEN_PIPE
    except OSError as error:
        from localfirst.cli import frame

        code = frame.report(frame.file_failed(error))
        mute(sys.stdout.fileno())
    except KeyboardInterrupt:
        code = INTERRUPTED
    return code


def with_streams() -> None:
    """Have both: nowhere to go where they are closed, `?` for letters a terminal has not."""
    import os

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def dispatch(words: list[str]) -> int:
    """Find the command, or answer what can be answered without one."""
    name = words[0] if words else ""
    if name in {"", "-h", "--help", "help"}:
        if name == "help" and len(words) > 1:
            return dispatch([words[1], "--help"])
        print(overview(), file=sys.stdout if name else sys.stderr)
        return 0 if name else USAGE
    if name in {"-V", "--version"}:
        from importlib.metadata import version

        print(f"localfirst {version('localfirst-runtime')}")
        return 0
    if name not in COMMANDS:
        print(unknown(name), file=sys.stderr)
        return USAGE
    from localfirst.cli import frame

    return frame.run(name, *COMMANDS[name], words[1:])


def overview() -> str:
    """What `--help` prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "LLM answers from this machine first, from clouds when it cannot",
            "",
            "usage: localfirst COMMAND …",
            "",
            *lines,
            "",
            "`localfirst COMMAND --help` tells a command's arguments, `--version` the version",
        ]
    )


def unknown(name: str) -> str:
    """What a misspelt command gets."""
    from difflib import get_close_matches

    near = [MEANT[name]] if name in MEANT else get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean `localfirst {near[0]}`?" if near else "run `localfirst --help`"
    shown = "".join(letter for letter in name if letter.isprintable())
    return f"error: `{shown}` is not a command [usage]\n\nhint: {hint}"


def mute(descriptor: int) -> None:
    """Nobody reads a stream any more: what is still to come goes nowhere, as at `cat`'s end."""
    import os

    # The interpreter flushes its stream once more at exit and must not find the broken pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
