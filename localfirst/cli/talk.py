"""The conversation of `localfirst chat`: lines in, answers out, and commands with a slash."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from localfirst.cli import chat, providers, render, session
from localfirst.client import AsyncClient
from localfirst.errors import LocalFirstError
from localfirst.types import Message

HELP = """\
  /switch NAME   ask only NAME from now on: a provider, a model, a route, `auto` or `local`
  /providers     the clouds and the state of their keys
  /test [NAME]   ask NAME (or who is chosen now) for one word
  /stats         what this conversation took
  /clear         forget what was said
  /help          this
  /exit          leave, as Ctrl-D does"""

KEPT_MESSAGES = 200
"""A conversation's oldest messages are forgotten beyond this."""


class Talk:
    """One conversation: what was said, who is asked, what it took."""

    def __init__(self, client: AsyncClient, given: argparse.Namespace) -> None:
        self._client = client
        self._given = given
        self.model: str = given.model
        self.messages: list[Message] = []
        self.took: dict[str, list[int]] = {}

    async def ask(self, text: str) -> None:
        """One turn; a failed or interrupted one is not remembered."""
        turn = Message(role="user", content=text)
        messages = [*chat.system(self._given.system), *self.messages, turn]
        stream = self._client.stream(messages, model=self.model, **chat.options(self._given))
        reply = await chat.answer(self._client, stream)
        said = Message(role="assistant", content=reply.text)
        self.messages = [*self.messages, turn, said][-KEPT_MESSAGES:]
        took = self.took.setdefault(reply.route, [0, 0, 0])
        for place, count in enumerate(
            (1, reply.usage.prompt_tokens, reply.usage.completion_tokens)
        ):
            took[place] += count

    async def command(self, line: str) -> bool:
        """Obey `/…`; False ends the conversation."""
        word, _, rest = line[1:].partition(" ")
        if word in {"exit", "quit", "bye", "q"}:
            return False
        known: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "switch": self.switch,
            "providers": self.providers,
            "test": self.test,
            "stats": self.stats,
            "clear": self.clear,
            "help": self.help,
        }
        if word not in known:
            render.say(f"`/{render.plain(word)}` is not a command; `/help` lists them")
            return True
        await known[word](rest.strip())
        return True

    async def switch(self, name: str) -> None:
        """Ask somebody else from now on."""
        self.model = await self.named(name) if name else "auto"
        plan = await self._client.explain(self.model)
        ready = plan.ready
        who = ready[0].target.route if ready else "nobody now, see `/providers`"
        render.say(f"`{self.model}`: {who}")

    async def named(self, name: str) -> str:
        """A provider's id becomes its own default model there; all else is a name already."""
        known = (await self._client.opened()).providers.get(name)
        if known is None or not known.default_models:
            return name
        return f"{name}/{known.default_models[0]}"

    async def providers(self, _: str) -> None:
        """List the clouds."""
        rows = providers.describe(await self._client.opened())
        providers.show([row for row in rows if row["in_order"] or row["ready"]])

    async def test(self, name: str) -> None:
        """Ask for one word, outside the conversation."""
        model = await self.named(name) if name else self.model
        stream = self._client.stream(
            "Answer with the one word: ready", model=model, max_tokens=16, fallback=not name
        )
        await chat.answer(self._client, stream)

    async def stats(self, _: str) -> None:
        """What this conversation took, by who answered."""
        if not self.took:
            render.say("nothing was answered yet")
            return
        rows = [(route, *(str(count) for count in took)) for route, took in self.took.items()]
        render.table(rows, head=("ROUTE", "ANSWERS", "TOKENS IN", "TOKENS OUT"), right=(1, 2, 3))

    async def clear(self, _: str) -> None:
        """Forget what was said."""
        self.messages.clear()
        render.say("forgotten")

    async def help(self, _: str) -> None:
        """List the commands."""
        render.say(HELP)


def run(runner: asyncio.Runner, given: argparse.Namespace) -> int:
    """Talk until the end of input; Ctrl-C ends an answer, or clears the line."""
    settings = session.loaded(given).settings
    client = AsyncClient(settings)
    talk = Talk(client, given)
    render.say("`/help` lists the commands, Ctrl-D leaves")
    try:
        while (line := read()) is not None:
            try:
                if not turn(runner, talk, line):
                    break
            except KeyboardInterrupt:
                render.say("\ninterrupted")
            except LocalFirstError as error:
                render.problem(error.message, hint=error.hint, code=error.code)
    finally:
        runner.run(client.aclose())
    return 0


def turn(runner: asyncio.Runner, talk: Talk, line: str) -> bool:
    """One line's worth; False ends the conversation."""
    if line.startswith("/"):
        return runner.run(talk.command(line))
    if line.strip():
        runner.run(talk.ask(line))
    return True


def read() -> str | None:
    """The next line, None at the end of input; Ctrl-C gives an empty one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` its editing and history
    try:
        return input(prompt())
    except EOFError:
        render.say()
        return None
    except KeyboardInterrupt:
        render.say()
        return ""


def prompt() -> str:
    """`> `, bold where that is shown; readline must be told what has no width."""
    if not render.has_colours(sys.stdout):
        return "> "
    return "\x01\x1b[1m\x02> \x01\x1b[0m\x02"
