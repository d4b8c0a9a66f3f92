"""What every test may count on."""

from __future__ import annotations

import signal

# Jobs in the background of a script are started with SIGINT ignored, and every program that
# they start would ignore it too: the tests that press Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
