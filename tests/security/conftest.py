"""Prints the attack table when the run is over."""

from __future__ import annotations

from typing import Any

from tests.security.table import rows_of, summary

RESULTS: dict[str, bool] = {}


def pytest_runtest_logreport(report: Any) -> None:
    if report.skipped or not rows_of(report.nodeid):
        return
    if report.when == "call" or report.failed:
        RESULTS[report.nodeid] = RESULTS.get(report.nodeid, True) and report.passed


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if RESULTS:
        terminalreporter.section("attack table")
        terminalreporter.write_line(summary(RESULTS))
