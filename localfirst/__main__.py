"""`python -m localfirst` is the command `localfirst`."""

from __future__ import annotations

import sys

from localfirst.cli import main

if __name__ == "__main__":
    sys.exit(main())
