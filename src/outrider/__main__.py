"""``python -m outrider``: the same command as ``outrider``."""

import sys

from outrider.cli import main

if __name__ == "__main__":
    sys.exit(main())
