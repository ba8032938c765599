"""ONNX Runtime on rewritten copies of a bundle's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from twoheads.graphs.program.engines.port import Port
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, OnnxRuntimeEngine

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

    def load_engine(
        self,
        path: Path,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, npt.NDArray[Any]],
        threads: int = 1,
        own_weights: bool = False,
    ) -> OnnxRuntimeEngine:
        copy = self._folder / path.name
        if not copy.exists():
            model = self._rewrite(onnx.load(path, load_external_data=False))
            copy.write_bytes(model.SerializeToString(deterministic=True))
        return super().load_engine(copy, inputs, outputs, weights, threads)
