"""Keeps the ONNX exporter's table of translations from engine to engine."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

__all__ = ["kept_registry"]


@contextmanager
def kept_registry(opset: int) -> Generator[None]:
    """Within it, every ``torch.onnx.export`` for ``opset`` begins with a copy of one table of translations.

    The exporter parses the sources of all of torchlib's functions anew for every model, which takes longer than to
    export one of our engines. What keeps them is not public: a release that does it otherwise does it at its own pace.
    """
    kept = _registry(opset)
    if kept is None:
        yield
        return
    owner = type(kept)
    original = vars(owner)["from_torchlib"]

    def from_torchlib(opset_version: int) -> Any:
        if opset_version != opset:
            return original.__get__(None, owner)(opset_version)
        registry = copy.copy(kept)
        registry.functions = {target: [*translations] for target, translations in kept.functions.items()}
        return registry

    owner.from_torchlib = staticmethod(from_torchlib)
    try:
        yield
    finally:
        owner.from_torchlib = original


@lru_cache
def _registry(opset: int) -> Any:
    """The table for ``opset``; ``None`` where this release of torch has none of this shape."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registry: Any = ONNXRegistry.from_torchlib(opset_version=opset)
    except (ImportError, AttributeError, TypeError):
        return None
    return registry if isinstance(vars(registry).get("functions"), dict) else None
