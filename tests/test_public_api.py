"""The public names: all importable, sorted, and the sync face no different from the async one."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import get_args

import localfirst
from localfirst.client import AsyncClient
from localfirst.events import Event, Opened, Relayed
from localfirst.sync import Client

ONLY_ASYNC = {"opened", "aclose"}
ONLY_SYNC = {"close"}


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }


def test_every_public_name_resolves_and_the_list_is_sorted() -> None:
    assert localfirst.__all__ == sorted(localfirst.__all__)
    for name in localfirst.__all__:
        assert getattr(localfirst, name).__name__ in {name, "load"}


def test_all_that_a_stream_gives_and_a_call_raises_can_be_named() -> None:
    """Who reads a tool call from a stream had to import from the inside."""
    shown = {getattr(localfirst, name) for name in localfirst.__all__}
    given = set(get_args(Event)) - {Opened, Relayed}  # between the rooms only
    assert given <= shown
    told = re.findall(r"^ +(\w+): ", str(AsyncClient.chat.__doc__).partition("Raises:")[2], re.M)
    assert told and set(told) <= set(localfirst.__all__)


def test_the_sync_client_has_the_same_methods_with_the_same_arguments() -> None:
    one, other = public(AsyncClient), public(Client)
    assert set(one) - ONLY_ASYNC == set(other) - ONLY_SYNC
    for name in set(one) & set(other):
        assert list(one[name].parameters.values()) == list(other[name].parameters.values()), name


def test_the_modules_functions_are_the_clients_methods() -> None:
    for name in ("chat", "stream", "embed", "pull"):
        own = list(inspect.signature(getattr(localfirst, name)).parameters.values())
        assert own == list(public(Client)[name].parameters.values())[1:]


def test_importing_touches_no_network_thread_or_third_party_package() -> None:
    script = (
        "import sys, threading\n"
        "events = []\n"
        "sys.addaudithook(lambda name, args: events.append(name))\n"
        "before = set(sys.modules)\n"
        "import localfirst\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "assert new <= set(sys.stdlib_module_names) | {'localfirst'}, new\n"
        "assert not [e for e in events if e.startswith(('socket.', 'subprocess.'))], events\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
