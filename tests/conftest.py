"""What every test may count on."""

from __future__ import annotations

import signal

import pytest

# Jobs in the background of a script are started with SIGINT ignored, and every program that
# they start would ignore it too: the tests that press Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Never run again what chooses at random (`scripts/test` does so with all other failures)."""
    for item in items:
        if item.get_closest_marker("hypothesis") is not None:
            item.add_marker(pytest.mark.flaky(reruns=0))
