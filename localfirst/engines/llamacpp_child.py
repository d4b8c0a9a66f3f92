"""
The program that holds one model: `python -m localfirst.engines.llamacpp_child`.

It is started by `engines.llamacpp.runner` and by nobody else. Line one of its standard
input is JSON with the model and the key to ask for (an argument list and an environment
are readable by other programs); the pipe then stays open, and its end means that the
parent is gone. It answers one JSON line on standard output: `{"address": …}` once the
model is loaded and the server listens on loopback, or `{"error": …}` and exit status 1.

Native code runs here so that a crash, an out-of-memory kill or an unload hurts nothing
else.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

EX_SOFTWARE = 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Load, serve, and end when the parent does; returns the exit status."""
    say = _private_stdout()
    settings = json.loads(sys.stdin.buffer.readline())
    _die_with_parent(settings["parent"])
    try:
        server = _server(settings)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        _say(say, {"error": f"{type(error).__name__}: {error}"})
        return EX_SOFTWARE
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which then stops us
    _say(say, {"address": server.listening_address})
    _until_the_parent_is_gone()
    return 0


def _private_stdout() -> int:
    """Keep standard output for our one line: native code that prints goes to the log."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def _say(descriptor: int, line: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(line).encode() + b"\n")


def _die_with_parent(parent: int) -> None:
    """
    Have the kernel end us with the parent, where it can.

    The end of input is seen by a thread that needs the interpreter, which native code
    holds while it loads; the kernel needs nobody.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _server(settings: dict[str, Any]) -> Any:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["alias"]}
    params.api_keys = [settings["key"]]
    params.hostnames = ["127.0.0.1"]
    params.n_parallel = settings["parallel"]
    params.n_ctx = settings["context_tokens"] * settings["parallel"]
    params.n_gpu_layers = settings["gpu_layers"]
    params.warmup = False
    if not settings["mapped"]:
        params.load_mode = 0
    params.ctx_shift = False  # a full window ends the answer; nothing is dropped unsaid
    params.offline = True
    params.ui = False
    params.endpoint_slots = False
    params.cache_ram_mib = 0  # kept prompts take memory that no prediction counts
    params.n_ctx_checkpoints = settings["checkpoints"]
    params.cors_origins = ""
    params.cors_origins_explicit = True
    _optional(llama, params, settings)
    return llama.Server(params)


def _optional(llama: Any, params: Any, settings: dict[str, Any]) -> None:
    if settings["template"]:
        params.chat_template = settings["template"]
    if settings["projector"]:
        params.mmproj.path = settings["projector"]
    if settings["threads"]:
        params.cpuparams.n_threads = settings["threads"]
        params.cpuparams_batch.n_threads = settings["threads"]
    if settings["batch"]:
        params.n_batch = params.n_ubatch = settings["batch"]
    if settings["embedding"]:
        params.embedding = True
        if settings["pooling"]:
            params.pooling_type = getattr(
                llama.llama_pooling_type, f"LLAMA_POOLING_TYPE_{settings['pooling'].upper()}"
            )


def _leave(*_: object) -> None:
    """Skip the native clean-up, which can hang behind a running answer; the system does it."""
    os._exit(0)


def _until_the_parent_is_gone() -> None:
    gone = threading.Event()

    def read() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        gone.set()

    threading.Thread(target=read, daemon=True).start()
    # In short waits, so that signals are seen between them on every platform.
    while not gone.wait(3600):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
