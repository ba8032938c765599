"""What ``--verbose`` shows: our own phases and their times; twice, whatever any library logs."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

from rich.logging import RichHandler

from twoheads.export.cli.shared.console import stderr_console

__all__ = ["logging_at"]

OURS = "twoheads"


@contextmanager
def logging_at(verbose: int) -> Generator[None]:
    """Logs to stderr while a command runs.

    Args:
        verbose: 0 for warnings, 1 for the phases of this project, 2 or more for all that anybody logs.
    """
    logging.captureWarnings(capture=True)
    silent = logging.NullHandler()
    logging.getLogger("py.warnings").addHandler(silent)
    logging.getLogger("py.warnings").propagate = verbose > 1
    if verbose < 2:
        # Read when transformers is imported, which is later: the commands have progress bars of their own.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logger = logging.getLogger(OURS if verbose == 1 else None)
    before = logger.level
    handler = RichHandler(console=stderr_console(), show_path=verbose > 1, show_level=verbose > 1, log_time_format="%X")
    handler.setFormatter(logging.Formatter("%(message)s"))
    if verbose:
        logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        logging.getLogger("py.warnings").removeHandler(silent)
        logging.captureWarnings(capture=False)
