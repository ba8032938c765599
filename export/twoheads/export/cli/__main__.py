"""Makes ``python -m twoheads.export.cli`` the same as ``twoheads``."""

import sys

from twoheads.export.cli.app import main

sys.exit(main())
