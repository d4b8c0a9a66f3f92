"""The errors as programs handle them: handed on by pools, copied, shown."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from localfirst import errors
from localfirst.errors import AccessDenied, CascadeExhausted, InsufficientResources, UnknownModel
from localfirst.types import Attempt

ATTEMPT = Attempt(provider="p", model="m", outcome="ok")
MADE = [
    InsufficientResources("no", kind="disk", needed_bytes=2, available_bytes=1),
    AccessDenied("no", code="bad-host", status=400, allow=("GET",)),
    CascadeExhausted("no", attempts=[ATTEMPT], skipped=[("p", "why")], http_status=429),
    UnknownModel("no", nearest=("a", "b"), field="there"),
]


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
@pytest.mark.parametrize(
    "again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
def test_an_error_comes_whole_out_of_another_process(
    made: errors.LocalFirstError, again: Callable[[Exception], Exception]
) -> None:
    """One that could not be unpickled broke the pool that it was raised in."""
    made.attempts = (ATTEMPT,)
    made.add_note("seen")
    found = again(made)
    assert type(found) is type(made)
    assert (str(found), found.args, vars(found)) == (str(made), made.args, vars(made))
