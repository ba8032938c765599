"""Where this user keeps what was found before: what lies there may go at any time, and is found anew."""

from __future__ import annotations

from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path | None:
    """The folder, which need not be there; ``None`` for a user without a home."""
    try:
        return Path.home() / ".cache" / "twoheads"
    except RuntimeError:
        return None
