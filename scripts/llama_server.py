"""
Stands in for `llama-server` behind a real Ollama: llama.cpp's own server from the wheel.

`scripts/ollama` puts it where the daemon looks for its inference program. It understands
the arguments that Ollama passes and ignores the rest.
"""

from __future__ import annotations

import os
import signal
import sys

FLAGS = {
    "-c": ("n_ctx", int),
    "-np": ("n_parallel", int),
    "-b": ("n_batch", int),
    "-ub": ("n_ubatch", int),
    "--keep": ("n_keep", int),
    "--port": ("port", int),
}
SWITCHES = {
    "--context-shift": ("ctx_shift", True),
    "--no-context-shift": ("ctx_shift", False),
    "--embedding": ("embedding", True),
    "--embeddings": ("embedding", True),
}


def main(arguments: list[str]) -> int:
    if "--version" in arguments or "--list-devices" in arguments:
        print("version: xllamacpp" if "--version" in arguments else "Available devices:")
        return 0
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.warmup = False
    params.ctx_shift = False
    # The tests' models are toys: a second thread only waits for the first.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    for index, argument in enumerate(arguments):
        value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if argument == "--model":
            params.model.path = value
        elif argument == "--mmproj":
            params.mmproj.path = value
        elif argument == "--host":
            params.hostnames = [value]
        elif argument in FLAGS:
            name, convert = FLAGS[argument]
            setattr(params, name, convert(value))
        elif argument in SWITCHES:
            name, state = SWITCHES[argument]
            setattr(params, name, state)
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Native threads may still be answering; the daemon wants the process gone.
    os._exit(code)
