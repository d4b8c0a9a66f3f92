"""`localfirst doctor`: what this machine can do, what is in the way, and what to do about it."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING

from localfirst.cli import render, session

if TYPE_CHECKING:
    from localfirst.runtime.checkup import Finding, Report

COLOURS = {
    "ok": render.GREEN,
    "info": render.CYAN,
    "warn": render.YELLOW,
    "error": render.RED,
}
INDENT = 7


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--offline", action="store_true", help="prove that this machine answers without a network"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def run(given: argparse.Namespace) -> int:
    """Examine; exit code 3 when nobody could answer a request now."""
    from localfirst.runtime import checkup

    if given.offline:
        from localfirst.cli import offline

        report = await offline.prove(given)
    else:
        async with session.client(given) as client:
            report = await checkup.examine(await client.opened())
    if given.json:
        render.as_json(checkup.as_json(report))
    else:
        show(report)
    return report.exit_code


def show(report: Report) -> None:
    """One line a finding; below it what was seen and what to do."""
    width = render.columns()
    for finding in report.findings:
        for line in lines(finding, width):
            print(line)


def lines(finding: Finding, width: int) -> list[str]:
    """A finding as it is printed."""
    word = render.paint(f"{finding.severity:<{INDENT - 2}}", COLOURS[str(finding.severity)])
    title, evidence = render.plain(finding.title), render.plain(finding.evidence)
    if evidence and INDENT + len(f"{title}: {evidence}") <= width:
        title, evidence = f"{title}: {evidence}", ""
    told = [f"{word}  {title}"]
    told += wrapped(evidence, width)
    if finding.fix:
        first, *rest = wrapped(f"-> {render.plain(finding.fix)}", width)
        told += [render.paint(line, render.CYAN) for line in (first, *rest)]
    return told


def wrapped(text: str, width: int) -> list[str]:
    """*text* under the findings' titles, in lines that fit."""
    indent = " " * INDENT
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
