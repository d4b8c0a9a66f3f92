"""The house's walls: import levels, seams, sizes. Design decisions that a reviewer would forget."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "localfirst"
FILES = sorted(ROOT.rglob("*.py"))

PURE = {
    "cascade": {"plan", "classify", "health", "quota", "contract", "escalate"},
    "machine": {"fit", "serverless", "recommend", "doctor"},
    "models": {"names", "manifest", "gguf", "lock", "toy"},
}
ROOMS = {"machine", "models", "engines", "providers"}
# Rooms of level 3 that may look at another room of level 3.
NEIGHBOURS = {"models": {"machine"}, "engines": {"models", "machine"}}


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def level(module: tuple[str, ...]) -> int:
    """The level of design §3 a module stands on."""
    if not module:
        return 5
    room, rest = module[0], module[1:]
    if room in {"types", "events", "errors", "settings"}:
        return 0
    if room in {"config", "wire"}:
        return 1
    if room in PURE and rest and (rest[0] in PURE[room] or rest[0].split("_")[0] in PURE[room]):
        return 1
    if room in {"transport", "ledger"}:
        return 2
    if room in ROOMS or module == ("cascade",):
        return 3
    if room == "cascade":
        return 4
    if room in {"runtime", "arguments", "client", "sync"}:
        return 5
    return 6


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Every `localfirst` module that *path* imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            inside = ROOT.joinpath(*node.module.split(".")[1:])
            if node.module.split(".")[0] == "localfirst" and inside.is_dir():
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == "localfirst":
                yield real_module(parts[1:])


def real_module(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Cut a dotted name down to the module it lies in."""
    while parts and not (
        ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").is_file()
    ):
        parts = parts[:-1]
    return parts


def allowed(source: tuple[str, ...], target: tuple[str, ...]) -> bool:
    here, there = level(source), level(target)
    if not target or (source and target and source[0] == target[0]):
        # The package itself is names only; inside a room files may lean on each other,
        # but a pure file never on one with effects.
        return not (here == 1 and there > 1)
    if here == 3 and there == 3:
        return target[0] in NEIGHBOURS.get(source[0], set())
    if here == 4:
        return there <= 2 or target == ("engines", "base")
    if source == ("__main__",):
        return target[0] == "cli"
    if here == 6:
        return there in {0, 1, 5}
    return there <= here


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_level_allows(path: Path) -> None:
    source = module_of(path)
    wrong = [".".join(target) for target in imports(path) if not allowed(source, target)]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 50
    ]
    assert long == []


SEAMS = {
    "environ": (r"\bos\.environ\b|\bos\.getenv\b", {"config/load.py", "transport/process.py"}),
    "print": (r"(?<![\w.])print\(", "cli/"),
    "time": (
        r"(?<![\w.])time\.(time|monotonic|sleep|perf_counter)\(|\basyncio\.sleep\((?!0\))",
        {"transport/clock.py"},
    ),
    "subprocess": (
        r"\bsubprocess\.|\bcreate_subprocess_|\bos\.(system|popen|fork|exec\w*|spawn\w*)\(",
        {"transport/process.py"},
    ),
    "httpx": (r"\bhttpx\.(Async)?Client\(", {"transport/http.py"}),
    "ollama": (r"^\s*(import ollama|from ollama\b)", {"engines/ollama.py", "engines/ollama/"}),
}


def code_only(text: str) -> str:
    """The source without docstrings and comments, so that prose may name a seam."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(value=0)
    return ast.unparse(tree)


@pytest.mark.parametrize("seam", SEAMS)
def test_each_effect_happens_in_one_place(seam: str) -> None:
    pattern, where = SEAMS[seam]
    places = (where,) if isinstance(where, str) else tuple(where)
    wrong = [
        name
        for path in FILES
        if re.search(pattern, code_only(path.read_text()), re.MULTILINE)
        and not (name := path.relative_to(ROOT).as_posix()).startswith(places)
    ]
    assert wrong == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    banned = {"utils", "helpers", "manager", "core", "common", "misc"}
    assert [str(path) for path in FILES if path.stem in banned] == []


def test_secrets_are_revealed_in_few_places() -> None:
    """`.reveal()` stands only where a header is built or a key is compared."""
    allowed_places = (
        "providers/",
        "cli/running",
        "gateway/guard",
        "gateway/server",
        "cascade/escalate",
        "runtime",
        "config/",
        "settings",
    )
    wrong = [
        name
        for path in FILES
        if ".reveal(" in code_only(path.read_text())
        and not (name := path.relative_to(ROOT).as_posix()).startswith(allowed_places)
    ]
    assert wrong == []
