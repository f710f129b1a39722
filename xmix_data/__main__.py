"""``python -m xmix_data``: the same as ``xmix``."""

import sys

from xmix_data.cli import main

if __name__ == "__main__":
    sys.exit(main())
