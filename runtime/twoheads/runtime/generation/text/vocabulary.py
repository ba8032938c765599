"""Which text every token of a tokenizer stands for, to compare two of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import BundleError

__all__ = ["vocabulary"]


def vocabulary(file: Path | None) -> Any:
    """What numbers and texts of tokens are in a ``tokenizer.json``, comparable; ``None`` without a file.

    Raises:
        BundleError: The file is none.
    """
    if file is None:
        return None
    try:
        told = json.loads(file.read_bytes())
        added = {entry["id"]: entry["content"] for entry in told.get("added_tokens") or ()}
        return told["model"]["vocab"], added
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(str(file), f"is no tokenizer: {error}", "compile the model again") from error
