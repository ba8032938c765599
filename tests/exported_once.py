"""Engines that are exported to ONNX once in a process of tests, however many tests compile the same tiny model.

An engine's file is made of its region's code, its operators and its ports, and of nothing else: weights are inputs, of
which only shapes and types are looked at. Where all of these are equal the file is that of before. Tests of the export
itself import :func:`~twoheads.export.emit.tokenwise_from_torch.tokenwise_model` by name, and get the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["export_once"]

MODULE = "twoheads.export.emit.tokenwise_from_torch"

LARGEST = 1 << 20
"""Bytes of a file that is kept."""


def export_once() -> None:
    """From here on, if what exports is loaded already: a process that compiles nothing loads no torch for this."""
    module: Any = sys.modules.get(MODULE)
    if module is not None and not hasattr(module.tokenwise_model, "kept"):
        module.tokenwise_model = _kept(module.tokenwise_model)


def _kept(export: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    import onnx

    kept: dict[Any, bytes] = {}

    def tokenwise_model(region: Any, engine: Any) -> onnx.ModelProto:
        traced = region.module(region.block_size(engine))
        key = traced.code, tuple(node.target for node in traced.graph.nodes), repr(engine)
        if key in kept:
            return onnx.ModelProto.FromString(kept[key])
        model = export(region, engine)
        content = model.SerializeToString()
        if len(content) <= LARGEST:
            kept[key] = content
        return model

    tokenwise_model.kept = kept  # type: ignore[attr-defined]
    return tokenwise_model
