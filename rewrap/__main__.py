"""`python -m rewrap`: the command line."""

import sys

from rewrap.cli import main

if __name__ == "__main__":
    sys.exit(main())
