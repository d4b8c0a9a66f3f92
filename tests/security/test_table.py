"""The attack table is whole: every row has a test, and no test names a row that is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.security.table import ROWS, rows_of, summary

SOURCE = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))


@pytest.mark.parametrize("row", list(ROWS))
def test_every_row_is_tried(row: str) -> None:
    named = rf"def test_(?:[a-z]\d+_)*{row.lower()}_|\"{row}-|f\"{row}-"
    assert re.search(named, SOURCE), ROWS[row]


def test_no_test_names_a_row_that_is_not_in_the_table() -> None:
    names = re.findall(r"def (test_(?:[a-z]\d+_)+)", SOURCE)
    found = {row for name in names for row in rows_of(f"::{name}")}
    assert found - set(ROWS) == set()


def test_the_summary_counts_rows_and_names_what_fell() -> None:
    results = {
        "t.py::test_attack_is_refused[H1-foreign]": True,
        "t.py::test_attack_is_refused[H1-other]": False,
        "t.py::test_k6_k7_nothing_is_said": True,
        "t.py::test_something_else[x]": False,
    }
    said = summary(results)
    assert "host 1/11 tried, 0 refused" in said
    assert f"rows tried: 3 of {len(ROWS)}, refused: 2, NOT refused: H1" in said
