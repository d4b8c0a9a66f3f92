"""`localfirst list`: what a row tells of a model, predicted, measured, loaded or elsewhere."""

from __future__ import annotations

from typing import Any

from localfirst.cli import list as listing
from localfirst.cli import render

ROW: dict[str, Any] = {
    "name": "llama3.2:3b",
    "digest": "sha256:a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
    "size_bytes": 2_019_393_189,
    "fit": "fits",
    "needed_bytes": 2_900_000_000,
    "measured_bytes": 0,
    "tokens_per_s": (5.2, 21.0),
    "measured_tokens_per_s": 0.0,
    "loaded": False,
    "remote": False,
    "modified_unix": 900.0,
}


def test_a_model_is_told_with_its_need_its_verdict_and_its_predicted_speed() -> None:
    assert listing.line(ROW, 960.0) == (
        "llama3.2:3b",
        "a80c4f17acd5",
        "2.0 GB",
        "2.9 GB",
        "fits",
        "5–21",
        "60 s ago",
    )


def test_a_measured_speed_takes_the_place_of_the_range() -> None:
    seen = ROW | {"measured_tokens_per_s": 14.2, "loaded": True}
    assert listing.line(seen, 960.0)[4:6] == ("loaded", "14 measured")
    assert render.speed(None, 4.25) == "4.2 measured"


def test_what_runs_elsewhere_needs_nothing_here() -> None:
    assert listing.line(ROW | {"remote": True}, 960.0)[2:6] == ("cloud", "–", "–", "–")
    unknown = ROW | {"needed_bytes": 0, "tokens_per_s": None}
    assert listing.line(unknown, 960.0)[3:6] == ("–", "fits", "–")


def test_a_pipe_gets_every_column() -> None:
    assert listing.columns() == tuple(range(len(listing.HEAD)))
