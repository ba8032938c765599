"""The command line ``twoheads``: one file a command, assembled in :mod:`twoheads.export.cli.app`."""

from twoheads.export.cli.app import main

__all__ = ["main"]
