"""`localfirst chat`: ask once and print the answer as it comes, or talk."""

from __future__ import annotations

import argparse
import asyncio
import os
import stat
import sys
from typing import TYPE_CHECKING

import msgspec

from localfirst.cli import render, session
from localfirst.cli.progress import Ticker
from localfirst.errors import InvalidRequest
from localfirst.events import Progress, ReasoningDelta, Reply, TextDelta
from localfirst.types import Json, Message

if TYPE_CHECKING:
    from localfirst.client import AsyncClient, AsyncStream

PIPED_CHARACTERS = 16 * 2**20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("prompt", nargs="*", help="the question; none starts a conversation")
    parser.add_argument("-m", "--model", default="auto", help="a model, `provider/model`, a route")
    parser.add_argument("-s", "--system", default="", help="instructions before the question")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--local-only", action="store_true", help="nothing leaves this machine")
    parser.add_argument("--no-fallback", action="store_true", help="ask the first rung only")
    parser.add_argument("--json", action="store_true", help="the whole answer as one JSON object")


def run(given: argparse.Namespace) -> int:
    """Answer the question from arguments and stdin, or start the conversation."""
    prompt = "\n\n".join(filter(None, (typed(" ".join(given.prompt)), piped())))
    talks = not prompt and sys.stdin is not None and sys.stdin.isatty()
    if not prompt and not talks:
        raise InvalidRequest(
            "there is no question", hint='ask: `localfirst chat "…"`', code="usage"
        )
    with asyncio.Runner() as runner:
        if talks:
            from localfirst.cli import talk

            return talk.run(runner, given)
        return runner.run(once(given, prompt))


async def once(given: argparse.Namespace, prompt: str) -> int:
    """One question, one answer."""
    messages = [*system(given.system), Message(role="user", content=prompt)]
    async with session.client(given) as client:
        stream = client.stream(messages, model=given.model, **options(given))
        reply = await answer(client, stream, quiet=given.json)
    if given.json:
        render.as_json(document(reply))
    return 0


def piped() -> str:
    """
    What was piped or redirected to us.

    Only pipes and files are read: a socket or device that somebody left open as our stdin
    would never end.
    """
    if sys.stdin is None:
        return ""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        return ""
    text = sys.stdin.buffer.read(PIPED_CHARACTERS).decode(errors="replace")
    return text.strip("\n")


def typed(words: str) -> str:
    """Words of the command line as UTF-8, be the locale another and the bytes none at all."""
    return os.fsencode(words).decode("utf-8", errors="replace")


def system(text: str) -> list[Message]:
    """The instructions as a message, if there are any."""
    return [Message(role="system", content=typed(text))] if text else []


def options(given: argparse.Namespace) -> dict[str, Json]:
    """The request's options that flags named."""
    wanted = {"max_tokens": given.max_tokens, "temperature": given.temperature}
    return {
        "local_only": given.local_only,
        "fallback": not given.no_fallback,
        **{name: value for name, value in wanted.items() if value is not None},
    }


async def answer(client: AsyncClient, stream: AsyncStream, *, quiet: bool = False) -> Reply:
    """Print one answer as it comes, then who gave it; *quiet* prints neither."""
    clock = (await client.opened()).clock
    ticker = Ticker("waiting")
    printer = Printer(quiet)
    try:
        async for event in stream:
            if isinstance(event, Progress):
                if not quiet:
                    note = f"{event.stage} {event.detail}".strip()
                    done, total = event.completed_bytes, event.total_bytes
                    ticker.show(done, total, clock.monotonic(), note=note)
                continue
            ticker.close()
            if isinstance(event, TextDelta):
                printer.text(event.text)
            elif isinstance(event, ReasoningDelta):
                printer.thought(event.text)
    finally:
        ticker.close()
        printer.end()
        await stream.aclose()
    if not quiet:
        who(stream.reply)
    return stream.reply


class Printer:
    """Text to stdout, thoughts dimmed to stderr, and a line's end between the two."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._last = "\n"
        self._thinking = False

    def text(self, text: str) -> None:
        """A piece of the answer."""
        if self._quiet or not text:
            return
        self._end_thought()
        sys.stdout.write(render.shown(text))
        sys.stdout.flush()
        self._last = text

    def thought(self, text: str) -> None:
        """A piece of what the model thinks aloud; only a person gets to see it."""
        if self._quiet or not text or not render.is_terminal(sys.stderr):
            return
        self._thinking = True
        sys.stderr.write(render.paint(render.plain(text), render.DIM, stream=sys.stderr))
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        self._end_thought()
        if not self._last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._last = "\n"

    def _end_thought(self) -> None:
        if self._thinking:
            self._thinking = False
            render.say("\n")


def who(reply: Reply) -> None:
    """One line on stderr: who answered, how fast, and who could not."""
    last = reply.attempts[-1].duration_s if reply.attempts else 0.0
    count = reply.usage.completion_tokens
    parts = [
        reply.route,
        f"{count} tokens" if count else "",
        f"{count / last:.0f} tokens/s" if count and last else "",
        f"in place of `{reply.substituted}`" if reply.substituted else "",
    ]
    trail = [f"{one.provider} ({one.outcome})" for one in reply.attempts if one.outcome != "ok"]
    parts.append("after " + ", ".join(trail) if trail else "")
    line = render.plain(" · ".join(filter(None, parts)))
    render.say(render.paint(f"— {line}", render.DIM, stream=sys.stderr))


def document(reply: Reply) -> dict[str, Json]:
    """The reply as JSON."""
    made: dict[str, Json] = msgspec.to_builtins(reply)
    return made
