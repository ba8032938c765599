"""A bundle of float16 as a bundle of float32 with the same weights: what proves that its compilation is right.

Nothing is compiled again. Every engine is the bundle's own file without the roundings of values and products; only its
weights remain what float16 made of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from twoheads.export.engines.rewritten import RewrittenEngines
from twoheads.export.precision.narrow_engine import widen_engine
from twoheads.graphs.program.program import AttentionEngine, Engine, Program, TokenwiseEngine, TokenwiseStage
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["widened_bundle"]


def widened_bundle(bundle: LoadedBundle, folder: Path) -> LoadedBundle:
    """``bundle`` with values and products of float32, on ONNX Runtime; copies of its engines go to ``folder``."""
    read = read_bundle(bundle.path, check="size")
    wide = replace(read, program=_widened(bundle.program))
    return LoadedBundle(wide, backend=RewrittenEngines(folder, widen_engine), precision="f32", threads=bundle.threads)


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
