"""
Other gateways from their registries, each in front of the same model server.

They are installed once, into `~/.cache/localfirst-bench` (or `XDG_CACHE_HOME`), never into this
checkout. One that cannot be set up is named with the reason, and left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from rig import MIDDLE, Place, free_port, running, wait_for

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localfirst-bench"
SETUP_S = 900.0
START_S = 120.0
KEY = "sk-2f9c1d7be04a4c55b8e1"

LITELLM = """
model_list:
  - model_name: auto
    litellm_params:
      model: openai/m
      api_base: http://127.0.0.1:{port}/v1
      api_key: {key}
general_settings:
  dangerously_permit_weak_or_unset_master_key: true
litellm_settings:
  telemetry: false
"""


class Missing(Exception):
    """A rival that cannot be set up here; the message says why."""


@contextlib.contextmanager
def litellm(folder: Path, upstream: int) -> Iterator[Place]:
    """The LiteLLM proxy with one worker, as its documentation starts it."""
    home = CACHE / "litellm"
    program = home / "bin" / "litellm"
    if not program.exists():
        print("installing litellm[proxy]; this takes a few minutes the first time", flush=True)
        venv.create(home, with_pip=True, clear=True)
        _installed([str(home / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"])
    found = next(home.glob("lib/*/site-packages/litellm-*.dist-info"), home)
    print(f"litellm {found.name.removesuffix('.dist-info').partition('-')[2]}")
    config, port = folder / "litellm.yaml", free_port()
    config.write_text(LITELLM.format(port=upstream, key=KEY))
    argv = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with _started([*argv, "--num_workers", "1"], folder / "litellm.log", port, quiet) as pid:
        yield Place(port, pid)


@contextlib.contextmanager
def portkey(folder: Path, upstream: int) -> Iterator[Place]:
    """Portkey's gateway, told by headers where the model server is."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise Missing("there is no Node.js")
    home = CACHE / "portkey"
    program = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        print("installing @portkey-ai/gateway", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        _installed(["npm", "install", "--silent", "--prefix", str(home), "@portkey-ai/gateway"])
    package = json.loads((program.parents[1] / "package.json").read_text())
    print(f"portkey {package['version']}")
    port = free_port()
    argv = ["node", str(program), "--headless", f"--port={port}"]
    trust = {"TRUSTED_CUSTOM_HOSTS": "localhost,127.0.0.1"}
    with _started(argv, folder / "portkey.log", port, trust) as pid:
        yield Place(
            port,
            pid,
            (
                ("x-portkey-provider", "openai"),
                ("x-portkey-custom-host", f"http://127.0.0.1:{upstream}/v1"),
                ("authorization", f"Bearer {KEY}"),
            ),
        )


def _installed(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SETUP_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"`{argv[0]}` failed: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Missing(f"it could not be installed: {' '.join(last)[:200]}")


@contextlib.contextmanager
def _started(argv: list[str], log: Path, port: int, environ: dict[str, str]) -> Iterator[int]:
    with log.open("w") as said:
        quiet = {**os.environ, **environ}
        with running(argv, MIDDLE, stdout=said, stderr=said, env=quiet) as child:
            try:
                wait_for(port, START_S)
            except SystemExit:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise Missing(f"it does not start: {' '.join(last)[:200]}") from None
            yield child.pid


RIVALS = {"litellm": litellm, "portkey": portkey}


def enter(stack: contextlib.ExitStack, folder: Path, upstream: int) -> dict[str, Place]:
    """Every rival that can be had, running until *stack* is closed."""
    found = {}
    for name, start in RIVALS.items():
        try:
            found[name] = stack.enter_context(start(folder, upstream))
        except Missing as reason:
            print(f"without {name}: {reason}", file=sys.stderr)
    return found
