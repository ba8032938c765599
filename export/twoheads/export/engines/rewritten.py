"""ONNX Runtime on rewritten copies of a bundle's engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, OnnxRuntimeEngine
from twoheads.runtime.backends.onnxruntime_shared import SharedEngine
from twoheads.runtime.backends.protocol import EngineFile

__all__ = ["RewrittenEngines"]


class RewrittenEngines(OnnxRuntimeBackend):
    """Opens copies of engine files, each rewritten once; their weights stay where they are.

    Args:
        folder: For the copies.
        rewrite: What becomes of a model, whose weights are not read; it may be changed in place.
    """

    def __init__(self, folder: Path, rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
        super().__init__()
        self._folder = folder
        self._rewrite = rewrite

    def load_engine(self, file: EngineFile) -> OnnxRuntimeEngine | SharedEngine:
        copy = self._folder / file.path.name
        if not copy.exists():
            model = self._rewrite(onnx.load(file.path, load_external_data=False))
            copy.write_bytes(model.SerializeToString(deterministic=True))
        return super().load_engine(replace(file, path=copy, own_weights=False))
