"""``python -m fedgen``: the command line without its entry point on the path."""

import sys

from fedgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
