"""The processor: cores that really work for us, and the instruction sets that matter."""

from __future__ import annotations

from localfirst.machine.fit import Cpu
from localfirst.machine.memory import groups
from localfirst.machine.readers import Readers, Tree

# What llama.cpp's kernels are chosen by (ggml/src/ggml-cpu), in the kernel's spelling.
FEATURES = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


def processor(tree: Tree, readers: Readers) -> Cpu:
    """What is known of the processor; unknown parts are empty."""
    if readers.platform == "darwin":
        return _apple(readers)
    info = tree.text("/proc/cpuinfo")
    if not info:
        return Cpu(architecture=readers.machine, threads=readers.affinity())
    blocks = [_fields(block) for block in info.split("\n\n") if block.strip()]
    threads = sum("processor" in block for block in blocks) or 1
    allowed = readers.affinity()
    flags = set(_first(blocks, "flags", "Features").split())
    return Cpu(
        model=_first(blocks, "model name", "Model", "Hardware"),
        architecture=readers.machine,
        cores=min(_cores(blocks, threads), allowed or threads),
        threads=min(threads, allowed or threads),
        quota=quota(tree),
        features=tuple(name for name in FEATURES if name in flags),
    )


def quota(tree: Tree) -> float:
    """Cores that control groups allow, the tightest on the way up; 0 without a limit."""
    found = []
    for group in groups(tree, "cpu"):
        if group.version == 2:
            part, _, period = tree.text(f"{group.folder}/cpu.max").partition(" ")
        else:
            part = tree.text(f"{group.folder}/cpu.cfs_quota_us")
            period = tree.text(f"{group.folder}/cpu.cfs_period_us")
        if part.isdigit() and period.strip().isdigit() and int(period):
            found.append(int(part) / int(period))
    return min(found, default=0.0)


def _apple(readers: Readers) -> Cpu:
    def count(name: str) -> int:
        text = readers.sysctl(name)
        return int(text) if text.isdigit() else 0

    return Cpu(
        model=readers.sysctl("machdep.cpu.brand_string"),
        architecture=readers.machine,
        # Efficiency cores slow a model down more than they help.
        cores=count("hw.perflevel0.physicalcpu") or count("hw.physicalcpu"),
        threads=count("hw.logicalcpu"),
        features=("asimd", "asimddp") if readers.machine == "arm64" else (),
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _first(blocks: list[dict[str, str]], *names: str) -> str:
    return next((block[name] for name in names for block in blocks if block.get(name)), "")


def _cores(blocks: list[dict[str, str]], threads: int) -> int:
    """Physical cores: pairs of socket and core; ARM does not tell and has no twins."""
    pairs = {
        (block["physical id"], block["core id"])
        for block in blocks
        if "physical id" in block and "core id" in block
    }
    return len(pairs) or threads
