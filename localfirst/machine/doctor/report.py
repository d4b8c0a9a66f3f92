"""The examination: all findings in order, the proof for a life offline, and both as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from localfirst.machine.doctor import answers, computer
from localfirst.machine.doctor.facts import Facts, Finding, Severity

CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    answers.together,
    computer.memory,
    computer.processor,
    computer.gpus,
    computer.disk,
    answers.engine,
    answers.models,
    answers.providers,
    answers.network,
    answers.mirrors,
    answers.hosting,
    answers.settings,
)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The findings of one examination; `healthy` when none is an error."""

    findings: tuple[Finding, ...]
    facts: Facts

    @property
    def healthy(self) -> bool:
        """True when nothing asked for is impossible."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 healthy; 3 nobody can answer now; 1 another error."""
        if self.healthy:
            return 0
        codes = {finding.code for finding in self.findings}
        return 3 if codes & {"answer-none", "offline-unproven"} else 1


def examine(facts: Facts, *, offline: bool = False) -> Report:
    """
    All findings, the overall answer first.

    With *offline* the report is about a life without a network: what is needed for it and,
    in `facts.proof`, a real answer made with the network shut off.
    """
    checks = (offline_life, *CHECKS) if offline else CHECKS
    return Report(
        findings=tuple(finding for check in checks for finding in check(facts)), facts=facts
    )


def offline_life(facts: Facts) -> Iterator[Finding]:
    """Whether this machine will answer without a network, proven rather than supposed."""
    missing = []
    if not facts.engine_ready:
        missing.append("an engine that runs or starts")
    if not facts.runnable:
        missing.append("an installed model that fits")
    if facts.store.damaged:
        missing.append(f"undamaged files ({', '.join(facts.store.damaged)})")
    proof = facts.proof
    if proof is not None and not proof.error and proof.tokens > 0 and not missing:
        yield Finding(
            code="offline-proven",
            area="answer",
            severity=Severity.OK,
            title="this machine answers without a network",
            evidence=f"{proof.model} said {_tokens(proof.tokens)} in {proof.duration_s:.1f} s"
            " with every connection but loopback refused",
        )
        return
    if proof is not None and proof.error:
        missing.append(f"an answer of {proof.model} ({proof.error})")
    elif proof is None or proof.tokens <= 0:
        missing.append("a real answer with the network shut off")
    yield Finding(
        code="offline-unproven",
        area="answer",
        severity=Severity.ERROR,
        title="it is not proven that this machine answers without a network",
        evidence=f"missing: {'; '.join(missing)}",
        fix="while online: `localfirst recommend --pull`, then `localfirst doctor --offline`",
    )


def _tokens(number: int) -> str:
    return "1 token" if number == 1 else f"{number} tokens"


def as_json(report: Report) -> dict[str, Any]:
    """
    The report as plain values, without secrets.

    `serverless` is `{rule, category, skip_pull, reason}`: `rule` null and `category`
    "local" when no rule matched.
    """
    facts = report.facts
    return {
        "healthy": report.healthy,
        "findings": msgspec.to_builtins(report.findings),
        "serverless": msgspec.to_builtins(facts.serverless),
        "network": {"online": facts.online, "reason": facts.online_reason},
        "hardware": msgspec.to_builtins(facts.hardware),
        "engine": _engine(facts),
        "providers": {
            key.provider: {"state": key.state, "reason": key.reason} for key in facts.keys
        },
        "store": msgspec.to_builtins(facts.store),
        "last_resort": {
            "name": facts.last_resort.name,
            "requested": facts.last_resort.requested,
            "reason": facts.last_resort.reason,
        }
        if facts.last_resort
        else None,
        "proof": msgspec.to_builtins(facts.proof),
    }


def _engine(facts: Facts) -> dict[str, Any] | None:
    engine = facts.engine
    if engine is None:
        return None
    return {
        "kind": engine.kind,
        "state": engine.state,
        "ready": engine.ready,
        "can_start": engine.can_start,
        "version": engine.version,
        "endpoint": engine.endpoint,
        "adopted": engine.adopted,
        "reason": engine.reason,
        "models": [
            {
                "name": model.name,
                "size_bytes": model.size_bytes,
                "fit": model.fit,
                "needed_bytes": model.needed_bytes,
                "measured_bytes": model.measured_bytes,
                "tokens_per_s": model.tokens_per_s,
                "measured_tokens_per_s": model.measured_tokens_per_s,
            }
            for model in engine.models
        ],
    }
