"""`python -m swift` is the `swift` command."""

import sys

from swift.cli import main

if __name__ == "__main__":
    sys.exit(main())
