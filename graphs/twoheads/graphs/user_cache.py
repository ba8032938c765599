"""Where this user keeps what was found before: what lies there may go at any time, and is found anew."""

from __future__ import annotations

import os
from pathlib import Path

from twoheads.graphs.errors import InputError

__all__ = ["needed_cache", "user_cache"]


def user_cache() -> Path | None:
    """The folder, which need not be there: in ``XDG_CACHE_HOME`` if that is an absolute path, or else in ``~/.cache``.

    ``None`` for a user without either. A relative path does not count, as the XDG specification has it.
    """
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if told.is_absolute():
        return told / "twoheads"
    try:
        return Path.home() / ".cache" / "twoheads"
    except RuntimeError:
        return None


def needed_cache(what: str) -> Path:
    """The same, for ``what`` has no other place.

    Raises:
        InputError: The user has none.
    """
    cache = user_cache()
    if cache is None:
        raise InputError(what, "has no place: this user has no home", "set XDG_CACHE_HOME to a folder of yours")
    return cache
