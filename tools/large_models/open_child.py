"""Opens a bundle, as a program does that is to run it, and prints as JSON how long that took.

python -m tools.large_models.open_child BUNDLE
"""

from __future__ import annotations

import json
import sys
import time

__all__ = ["main"]


def main() -> None:
    """See the module's text."""
    from twoheads.runtime import load

    began = time.perf_counter()
    load(sys.argv[1])
    sys.stdout.write(json.dumps({"seconds": time.perf_counter() - began}) + "\n")


if __name__ == "__main__":
    main()
