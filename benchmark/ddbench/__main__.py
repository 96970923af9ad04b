"""`python -m ddbench` is `ddbench`."""

import sys

from ddbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
