"""
The terminal that a gateway was started on, and whether it is still there.

SIGHUP has two meanings: services are told so to read their configuration again, and who
runs on a terminal is told so that it was closed. A gateway that took the second for the
first would go on for ever, unseen, with its port and its models.
"""

from __future__ import annotations

import os
import signal


class Terminal:
    """Looks once at the start; `nohup`, which ignores the signal, is obeyed."""

    def __init__(self) -> None:
        number = getattr(signal, "SIGHUP", None)
        outlives = number is None or signal.getsignal(number) is signal.SIG_IGN
        self._ours = not outlives and there()

    def gone(self) -> bool:
        """Whether there was one, and it was closed."""
        return self._ours and not there()


def there() -> bool:
    """Whether this process has a terminal that it is controlled by."""
    try:
        opened = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    os.close(opened)
    return True
