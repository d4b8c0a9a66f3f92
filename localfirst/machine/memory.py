"""
RAM, swap, and what a container leaves of them.

A limit anywhere on the way from this process' control group to the root counts, in both
versions of cgroups; page cache that can be dropped does not count as used. Kernel
documentation: admin-guide/cgroup-v1/memory.rst, admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from localfirst.machine.readers import Ram, Tree

UNLIMITED_BYTES = 2**60  # version 1 writes "none" as the largest number of whole pages


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One control group's folder and how its files are named."""

    folder: str
    version: int


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """
    The tightest limit in force (0 none), and what is left under all of them.

    `swap_bytes` is the swap that may be used beside it, None without a limit of its own.
    """

    limit_bytes: int = 0
    left_bytes: int = 0
    swap_bytes: int | None = None


def meminfo(tree: Tree) -> Ram | None:
    """Linux' own account, or None where there is none."""
    values: dict[str, int] = {}
    for line in tree.text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            values[name] = int(number[0]) * 1024
    total = values.get("MemTotal", 0)
    if not total:
        return None
    # Kernels before 3.14 have no MemAvailable.
    free = sum(values.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    return Ram(
        total=total,
        available=min(values.get("MemAvailable", free), total),
        swap_total=values.get("SwapTotal", 0),
        swap_free=values.get("SwapFree", 0),
    )


def container_limit(tree: Tree) -> Limit:
    """The memory that this process' control groups allow it."""
    limits, lefts, swaps = [], [], []
    for group in groups(tree, "memory"):
        limit = _limit(tree, group)
        if limit is not None:
            limits.append(limit)
            lefts.append(max(0, limit - _used(tree, group)))
        swap = _swap(tree, group, limit)
        if swap is not None:
            swaps.append(swap)
    return Limit(
        limit_bytes=min(limits, default=0),
        left_bytes=min(lefts, default=0),
        swap_bytes=min(swaps, default=None),
    )


def _swap(tree: Tree, group: Group, limit: int | None) -> int | None:
    """Version 2 limits swap itself, version 1 memory and swap together."""
    if group.version == 2:
        return tree.number(f"{group.folder}/memory.swap.max")
    both = tree.number(f"{group.folder}/memory.memsw.limit_in_bytes")
    if both is None or limit is None or both >= UNLIMITED_BYTES:
        return None
    return max(0, both - limit)


def groups(tree: Tree, controller: str) -> Iterator[Group]:
    """This process' group for *controller* and all above it, those that can be seen."""
    for line in tree.text("/proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if not names:
            tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            yield from _upwards(tree, tops, path, "cgroup.controllers", 2)
        elif controller in names.split(","):
            tops = [f"/sys/fs/cgroup/{names}", f"/sys/fs/cgroup/{controller}"]
            yield from _upwards(tree, tops, path, "cgroup.procs", 1)


def _upwards(tree: Tree, tops: list[str], path: str, mark: str, version: int) -> Iterator[Group]:
    """
    From *path* up to the first of *tops* that exists.

    Inside a container the path often names the host's folders, which are not there; the
    top then is the container's own group.
    """
    top = next((top for top in tops if tree.exists(top) and tree.names(top)), "")
    if not top:
        return
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    for depth in range(len(parts), -1, -1):
        folder = "/".join([top, *parts[:depth]])
        if tree.exists(f"{folder}/{mark}") or depth == 0:
            yield Group(folder=folder, version=version)


def _limit(tree: Tree, group: Group) -> int | None:
    names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
    said = [tree.number(f"{group.folder}/{name}") for name in names]
    if group.version == 1:
        # What groups above allow, those that a container does not see included.
        said.append(_counted(tree, group, "hierarchical_memory_limit"))
    return min((size for size in said if size and 0 < size < UNLIMITED_BYTES), default=None)


def _counted(tree: Tree, group: Group, wanted: str) -> int | None:
    for line in tree.text(f"{group.folder}/memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted and value.strip().isdigit():
            return int(value)
    return None


def _used(tree: Tree, group: Group) -> int:
    current, cache = (
        ("memory.current", "inactive_file")
        if group.version == 2
        else ("memory.usage_in_bytes", "total_inactive_file")
    )
    used = tree.number(f"{group.folder}/{current}") or 0
    return max(0, used - (_counted(tree, group, cache) or 0))
