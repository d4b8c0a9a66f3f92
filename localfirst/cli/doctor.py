"""`localfirst doctor`: what this machine can do, what is in the way, and what to do about it."""

from __future__ import annotations

import argparse

from localfirst.cli import render, session
from localfirst.cli.findings import Finding, Severity, examine

COLOURS = {
    Severity.OK: render.GREEN,
    Severity.NOTE: render.CYAN,
    Severity.WARNING: render.YELLOW,
    Severity.PROBLEM: render.RED,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--offline", action="store_true", help="prove that this machine answers without a network"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Examine; exit code 3 when nobody could answer a request now."""
    if given.offline:
        from localfirst.cli import offline

        return await offline.run(given)
    async with session.client(given) as client:
        report = await examine(client)
    if given.json:
        render.as_json(report.document)
    else:
        show(report.findings)
        print()
        print(conclusion(report.answers))
    return 0 if report.answers else 3


def show(findings: list[Finding]) -> None:
    """One line a finding, and what to do below it."""
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        word = render.paint(f"{finding.severity:<7}", COLOURS[finding.severity])
        print(f"{word}  {finding.subject:<{width}}  {render.plain(finding.evidence)}")
        if finding.fix:
            print(f"{' ' * (width + 11)}{render.plain(finding.fix)}")


def conclusion(answers: str) -> str:
    """What it all comes to."""
    if not answers:
        return render.paint("nobody could answer a request now", render.RED)
    if answers.startswith("pull/"):
        return f"a request now would first download `{answers.removeprefix('pull/')}`"
    return f"a request now would be answered by {render.paint(answers, render.BOLD)}"
