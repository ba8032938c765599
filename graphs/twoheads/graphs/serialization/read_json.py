"""JSON that anybody may have written: read within limits, and one error for all that can be wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from twoheads.graphs.errors import InputError, TwoheadsError

__all__ = ["DEEPEST", "LARGEST", "parse_json", "read_json"]

LARGEST = 1 << 24
"""Bytes of a file unless told otherwise; what it holds takes many times as much memory."""

DEEPEST = 100
"""Levels of lists and objects within each other: what reads them recurses as deeply."""


def read_json(
    path: str | os.PathLike[str],
    *,
    fix: str = "",
    error: type[TwoheadsError] = InputError,
    largest: int = LARGEST,
) -> Any:
    """What a file of JSON holds.

    Args:
        path: The file.
        fix: What an error says to do.
        error: The kind of error.
        largest: Bytes that a file may have; no more than that are read of any.

    Raises:
        TwoheadsError: Of the kind ``error``: no such file, too large, no UTF-8, no JSON, or too deep.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(largest + 1)
    except (OSError, ValueError) as problem:  # a name with a null byte is a ValueError
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise error(str(path), f"can't be read: {reason}", fix) from None
    if len(data) > largest:
        raise error(str(path), f"is larger than {largest} bytes, which no such file is", fix)
    return parse_json(data, str(path), fix=fix, error=error)


def parse_json(data: bytes, where: str, *, fix: str = "", error: type[TwoheadsError] = InputError) -> Any:
    """What ``data`` holds; a byte order mark in front of it is none of it.

    Raises:
        TwoheadsError: Of the kind ``error``: no UTF-8, no JSON, or too deep.
    """
    try:
        found: Any = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise error(where, f"is not UTF-8: {problem.reason} at byte {problem.start}", fix) from None
    except RecursionError:
        raise error(where, _DEEP, fix) from None
    except ValueError as problem:
        raise error(where, f"is not JSON: {problem}", fix) from None
    if data.count(b"[") + data.count(b"{") > DEEPEST and _is_deep(found):
        raise error(where, _DEEP, fix)
    return found


_DEEP = f"holds lists or objects nested more than {DEEPEST} deep"


def _is_deep(found: Any) -> bool:
    """Whether some list or object lies deeper than :data:`DEEPEST`, without recursion."""
    level: list[Any] = [found] if isinstance(found, dict | list) else []
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _children(item: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", item).values() if isinstance(item, dict) else cast("list[Any]", item)
