"""Engines that are exported to ONNX once in a run of tests, however many tests compile the same tiny model.

An engine's file is made of its region's code, its operators and its ports, and of nothing else: weights are inputs, of
which only shapes and types are looked at. Where all of these are equal the file is that of before: of this process, or
of another of the run, which has left it in the shared folder. Tests of the export itself import
:func:`~twoheads.export.emit.tokenwise_from_torch.tokenwise_model` by name, and get the real one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from tests.shared_folder import shared_folder

__all__ = ["export_once"]

MODULE = "twoheads.export.emit.tokenwise_from_torch"

LARGEST = 1 << 20
"""Bytes of a file that is kept."""

KNOWN = ("aten.", "prims.", "<built-in function")
"""How the names of operators begin that are the same in every process."""


def export_once() -> None:
    """From here on, if what exports is loaded already: a process that compiles nothing loads no torch for this."""
    module: Any = sys.modules.get(MODULE)
    if module is not None and not hasattr(module.tokenwise_model, "kept"):
        module.tokenwise_model = _kept(module.tokenwise_model, shared_folder())


def _kept(export: Callable[[Any, Any], Any], folder: Path) -> Callable[[Any, Any], Any]:
    import onnx

    kept: dict[Any, bytes] = {}

    def tokenwise_model(region: Any, engine: Any) -> onnx.ModelProto:
        traced = region.module(region.block_size(engine))
        targets = tuple(node.target for node in traced.graph.nodes)
        key = traced.code, targets, repr(engine)
        place = _place(folder, traced.code, targets, engine)
        if key not in kept and place is not None and place.exists():
            kept[key] = place.read_bytes()
        if key in kept:
            return onnx.ModelProto.FromString(kept[key])
        model = export(region, engine)
        content = model.SerializeToString()
        if len(content) <= LARGEST:
            kept[key] = content
            if place is not None:
                _write(place, content)
        return model

    tokenwise_model.kept = kept  # type: ignore[attr-defined]
    return tokenwise_model


def _place(folder: Path, code: str, targets: tuple[Any, ...], engine: Any) -> Path | None:
    """The file of such an engine for other processes; ``None`` where an operator may be another one there."""
    named = [str(target) for target in targets if not isinstance(target, str)]
    if not all(name.startswith(KNOWN) for name in named):
        return None
    return folder / f"{hashlib.sha256(repr((code, named, engine)).encode()).hexdigest()}.onnx"


def _write(place: Path, content: bytes) -> None:
    """All of it or nothing, as another process may be reading."""
    number, name = mkstemp(dir=place.parent)
    with open(number, "wb") as file:
        file.write(content)
    Path(name).rename(place)
