"""
What the embedded engine really takes for a model: its own report, and its process' size.

Loads the model in a child, makes it work through a prompt longer than one batch so that
every buffer has been touched, and reads the buffer sizes from llama.cpp's log and the
resident size from /proc. Run as a program it is that child.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

CACHE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|output|compute) buffer size\s*=\s*([\d.]+) MiB")
RAISED = re.compile(r"[\w.]*(Error|Exception|Disconnected|Timeout)\b")
MIB = 2**20
WAIT_S = 240.0


class NotMeasured(RuntimeError):
    """The engine did not load the model, or did not answer."""


@dataclass(frozen=True)
class Taken:
    """Bytes by part from the engine's log, and the child's resident bytes."""

    model: int
    kv: int
    compute: int
    output: int
    resident: int
    base: int

    @property
    def buffers(self) -> int:
        return self.model + self.kv + self.compute + self.output


def measure(
    path: Path,
    *,
    context: int,
    parallel: int = 1,
    cache_type: str = "f16",
    flash_attention: bool = True,
    mmap: bool = False,
    embedding: bool = False,
    prompt_tokens: int = 1200,
) -> Taken:
    """
    Load *path* in a child and say what it took.

    Raises:
        NotMeasured: the model does not load, or did not answer in time, twice.
    """
    options = {
        "path": str(path),
        "context": context,
        "parallel": parallel,
        "cache": CACHE_TYPES[cache_type],
        "flash": 1 if flash_attention else 0,
        "mmap": mmap,
        "embedding": embedding,
        "prompt": min(prompt_tokens, context - 16),
    }
    answer, log = _loaded(options)
    sizes = json.loads(answer)
    parts = {"model": 0.0, "KV": 0.0, "RS": 0.0, "output": 0.0, "compute": 0.0}
    for _, part, size in BUFFER.findall(log):
        parts[part] += float(size) * MIB
    return Taken(
        model=int(parts["model"]),
        kv=int(parts["KV"] + parts["RS"]),
        compute=int(parts["compute"]),
        output=int(parts["output"]),
        resident=sizes["resident"],
        base=sizes["base"],
    )


def _loaded(options: dict[str, int | str | bool]) -> tuple[bytes, str]:
    """What the child answered and logged; a second try on a machine that is busy just now."""
    why = ""
    for wait_s in (WAIT_S, 2 * WAIT_S):
        try:
            done = subprocess.run(
                [sys.executable, __file__, json.dumps(options)], capture_output=True, timeout=wait_s
            )
        except subprocess.TimeoutExpired:
            why = f"no answer within {wait_s:g} s"
            continue
        log = done.stderr.decode(errors="replace")
        if not done.returncode and done.stdout:
            return done.stdout, log
        raised = [line for line in log.splitlines() if RAISED.match(line)]
        why = raised[-1] if raised else f"ended with {done.returncode}: {log[-200:]}"
    raise NotMeasured(why)


def _resident() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return 0


def _child(options: dict[str, int | str | bool]) -> None:
    import xllamacpp

    base = _resident()
    params = xllamacpp.CommonParams()
    params.model.path = options["path"]
    params.n_parallel = options["parallel"]
    params.n_ctx = int(options["context"]) * int(options["parallel"])
    params.n_gpu_layers = 0
    params.verbosity = 5
    params.fit_params = False
    params.cache_type_k = params.cache_type_v = options["cache"]
    params.flash_attn_type = options["flash"]
    params.load_mode = 1 if options["mmap"] else 0
    params.warmup = False
    params.cache_ram_mib = 0
    # More than one thread would wait for each other by spinning, for minutes on a busy machine.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    path, body = (
        "/completion",
        {"prompt": "x" * int(options["prompt"]), "n_predict": 4, "temperature": 0},
    )
    if options["embedding"]:
        params.embedding = True
        params.n_batch = params.n_ubatch = max(512, min(int(options["context"]), 8192))
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        path, body = "/v1/embeddings", {"input": "x" * int(options["prompt"])}
    server = xllamacpp.Server(params)
    request = urllib.request.Request(
        f"{server.listening_address}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=200) as answer:
        answer.read()
    sys.stdout.write(json.dumps({"base": base, "resident": _resident()}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
