"""
Whether this process runs where a downloaded model is lost or does harm.

An ordered list of rules over environment variables (`data/serverless.json`); the first that
holds decides. Emulators on a developer's machine come before the platforms they imitate,
and products before the substrate they run on (Vercel carries Lambda's variables). An empty
variable counts as unset. Pure: the environment is handed in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

OVERRIDE = "LOCALFIRST_SERVERLESS"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where this process runs, as far as the last-resort download is concerned.

    `rule` is the rule that matched or None; `category` one of serverless, ephemeral, paas,
    ci, local_emulator, dev_container, notebook, container, local. `reason` names the
    variable that fired and the way out.
    """

    rule: str | None
    category: str
    skip_pull: bool
    reason: str


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One test of one variable."""

    var: str
    op: str
    value: str | tuple[str, ...] = ""

    def holds(self, environ: Mapping[str, str]) -> bool:
        """Say whether *environ* satisfies this condition."""
        actual = environ.get(self.var, "")
        if self.op == "in":
            return actual.lower() in {word.lower() for word in self.value}
        match self.op:
            case "set":
                return actual != ""
            case "unset":
                return actual == ""
            case "eq":
                return actual == self.value
            case "ne":
                return actual != self.value
            case _:
                return isinstance(self.value, str) and actual.startswith(self.value)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A platform: it is this one when every condition of any group holds."""

    id: str
    name: str
    category: str
    pull: str
    any_of: tuple[tuple[Condition, ...], ...]
    volume_var: str = ""

    def match(self, environ: Mapping[str, str]) -> tuple[Condition, ...] | None:
        """The first group that holds, or None."""
        for group in self.any_of:
            if all(condition.holds(environ) for condition in group):
                return group
        return None


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    dated: str
    rules: tuple[Rule, ...]


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """The rules in the order in which they are asked."""
    path = Path(__file__).parent / "data" / "serverless.json"
    return msgspec.json.decode(path.read_bytes(), type=_Table).rules


def verdict(
    environ: Mapping[str, str], *, platform: str = sys.platform, override: str = "auto"
) -> Verdict:
    """
    Say where this process runs and whether a model may be downloaded unasked.

    Args:
        environ: the process's environment.
        platform: `sys.platform`; "emscripten" has no sockets at all.
        override: the setting `serverless` ("1", "0", "auto"); wins, as does its variable.
    """
    forced = override if override in {"0", "1"} else environ.get(OVERRIDE, "")
    if forced == "1":
        return Verdict(
            rule="override",
            category="serverless",
            skip_pull=True,
            reason=f"`serverless` is set to 1: no model is downloaded; {OVERRIDE}=0 allows it",
        )
    found = _first_match(environ)
    if forced == "0":
        seen = f" although the variables look like {found[0].name}" if found else ""
        return Verdict(
            rule=None,
            category="local",
            skip_pull=False,
            reason=f"`serverless` is set to 0: treated as a machine of your own{seen}",
        )
    if platform == "emscripten":
        return Verdict(
            rule="emscripten",
            category="serverless",
            skip_pull=True,
            reason="Python runs inside WebAssembly, without sockets and processes",
        )
    if found is None:
        return Verdict(
            rule=None,
            category="local",
            skip_pull=False,
            reason="no variable of a hosting platform is set",
        )
    return _of_rule(*found, environ)


def _first_match(environ: Mapping[str, str]) -> tuple[Rule, tuple[Condition, ...]] | None:
    for rule in rules():
        group = rule.match(environ)
        if group is not None:
            return rule, group
    return None


def _of_rule(rule: Rule, group: tuple[Condition, ...], environ: Mapping[str, str]) -> Verdict:
    volume = rule.volume_var and environ.get(rule.volume_var, "")
    skip = rule.pull not in {"ok", "ok_if_disk"} and not volume
    fired = ", ".join(
        f"{condition.var}={environ[condition.var][:40]}"
        if condition.op in {"eq", "in"}
        else condition.var
        for condition in group
        if environ.get(condition.var)
    )
    reason = f"{rule.name} ({fired} is set)"
    if skip:
        reason += f": no model is downloaded; {OVERRIDE}=0 allows it, or set a provider's key"
    elif rule.category == "notebook":
        reason += ": a downloaded model is lost when the session ends"
    return Verdict(rule=rule.id, category=rule.category, skip_pull=skip, reason=reason)
