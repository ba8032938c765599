"""Files of a folder that others may have written, found through one function that no link leads out of."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twoheads.graphs.errors import BundleError
from twoheads.graphs.serialization.relative_path import RelativePath

__all__ = ["RECOMPILE", "UNTRUSTED", "inside"]

RECOMPILE = "compile the model again with `twoheads compile`, or copy the bundle again from where it is whole"
UNTRUSTED = "don't use a bundle from an untrusted source; compile the model again"


def inside(folder: Path, name: RelativePath) -> Path:
    """The path of the file ``name`` of ``folder``, to be opened.

    Raises:
        BundleError: There is no such file, it is no regular file, or a link leads out of the folder.
    """
    path = folder / name
    try:
        end = os.path.realpath(path, strict=True)
        below = Path(end).is_relative_to(os.path.realpath(folder))
        regular = stat.S_ISREG(os.stat(end).st_mode)
    except FileNotFoundError:
        raise BundleError(str(path), "is missing from the bundle", RECOMPILE) from None
    except OSError as error:  # a link to itself among them
        raise BundleError(str(path), f"can't be read: {error.strerror or error}", RECOMPILE) from None
    if not below:
        raise BundleError(str(path), "is a link that leaves the bundle", UNTRUSTED)
    if not regular:
        raise BundleError(str(path), "is no regular file", UNTRUSTED)
    return path
