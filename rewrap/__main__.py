"""`python -m rewrap`: the command line."""

import sys

from rewrap.main import main

if __name__ == "__main__":
    sys.exit(main())
