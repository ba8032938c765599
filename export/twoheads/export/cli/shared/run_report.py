"""What a command tells of the runs that it made: warnings, a report as a file, as JSON or for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import print_json, print_warning
from twoheads.runtime.memory.new_file import replacing

__all__ = ["tell"]


def tell(
    warnings: Iterable[str], data: Any, path: Path | None, for_people: Callable[[], None], *, as_json: bool
) -> None:
    """Prints each warning once, writes ``data`` to ``path`` if it is given, and prints ``data`` or what is for people.

    Raises:
        TwoheadsError: The file can't be written.
    """
    for warning in dict.fromkeys(warnings):
        print_warning(warning)
    if path is not None:
        _write(path, data)
    if as_json:
        print_json(data)
    else:
        for_people()


def _write(path: Path, data: Any) -> None:
    try:
        with replacing(path) as file:
            file.write((json.dumps(data, indent=2) + "\n").encode())
    except OSError as error:
        raise arguments.unwritable(path, error) from None
