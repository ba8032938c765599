"""A bundle of float16 as a bundle of float32 with the same weights: what proves that its compilation is right.

Nothing is compiled again. Every engine is the bundle's own file without the roundings of values and products; only its
weights remain what float16 made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from twoheads.export.narrow_engine import widen_engine
from twoheads.graphs.port import Port
from twoheads.graphs.program import (
    AttentionEngine,
    Engine,
    Program,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.runtime.backend_onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from twoheads.runtime.bundle_reader import read_bundle
from twoheads.runtime.session import LoadedBundle

__all__ = ["widened_bundle"]


def widened_bundle(bundle: LoadedBundle, folder: Path) -> LoadedBundle:
    """``bundle`` with values and products of float32, on ONNX Runtime; copies of its engines go to ``folder``."""
    read = read_bundle(bundle.path, check="size")
    wide = replace(read, program=_widened(bundle.program))
    return LoadedBundle(wide, backend=_WidenedEngines(folder), precision="f32", threads=bundle.threads)


class _WidenedEngines(OnnxRuntimeBackend):
    """Opens widened copies of engines; their weights stay where they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def load_engine(
        self,
        path: Path,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, npt.NDArray[Any]],
        threads: int = 1,
        own_weights: bool = False,
    ) -> OnnxRuntimeEngine:
        widened = self._folder / path.name
        if not widened.exists():
            model = widen_engine(onnx.load(path, load_external_data=False))
            widened.write_bytes(model.SerializeToString(deterministic=True))
        return super().load_engine(widened, inputs, outputs, weights, threads)


def _widened(program: Program) -> Program:
    return replace(
        program,
        engines=tuple(map(_engine, program.engines)),
        body=tuple(map(_stage, program.body)),
        head=tuple(map(_stage, program.head)),
    )


def _engine(engine: Engine) -> Engine:
    """The engine with float32 ports; its weights are what the file of weights holds."""
    if isinstance(engine, AttentionEngine):
        return replace(engine, dtype="float32")
    if isinstance(engine, TokenwiseEngine):
        return replace(engine, inputs=_wide(engine.inputs), outputs=_wide(engine.outputs))
    return engine


def _stage(stage: Any) -> Any:
    return replace(stage, outputs=_wide(stage.outputs)) if isinstance(stage, TokenwiseStage) else stage


def _wide(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Ports or values with float32 in place of float16."""
    return tuple(replace(entry, dtype="float32") if entry.dtype == "float16" else entry for entry in given)
