"""``python -m wcodec``: the same as the `wcodec` command."""

import sys

from wcodec.cli import main

if __name__ == "__main__":
    sys.exit(main())
