"""The engine of some columns of a head, as a file of a bundle; see :mod:`twoheads.graphs.schedule.head_columns`.

It is the head's own file with another number of classes. That its columns are independent of each other is not assumed:
the graph is made once with few classes and once with fewer, and the scores of one are looked for among the other's. A
head of which that is not so (a softmax over all classes) gets no such file, and runs as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]

from twoheads.export.bundle.engine_files import save_engine
from twoheads.export.bundle.resized_engines import with_number
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.program.program import Port, Program, TokenwiseEngine
from twoheads.graphs.schedule.head_columns import head_columns
from twoheads.graphs.serialization.bundle_format import ENGINES, WeightEntry

__all__ = ["write_columns"]

logger = logging.getLogger(__name__)

FEW, FEWER = 48, 16
"""Classes of the two trials."""

TOLERANCE = 1e-3
"""Between them, as a share of the largest score: kernels of few columns may round another way."""

Array = npt.NDArray[Any]


def write_columns(
    program: Program, models: Mapping[str, onnx.ModelProto], folder: Path, entries: Mapping[str, WeightEntry]
) -> None:
    """Writes the engine of some columns of the head into the bundle ``folder``, if the head can have one.

    Args:
        program: Of the bundle.
        models: The token-wise engines, their weights being inputs.
        folder: The bundle's, with its weights.
        entries: Where each weight lies.
    """
    columns = head_columns(program)
    if columns is None:
        return
    for stage in columns.head:
        if not isinstance(stage, ColumnsStage):
            raise InternalError(f"stage {stage.name} of the head is not in columns")
        engine, whole = columns.engine_of(TokenwiseEngine, stage.engine), models[stage.whole]
        parted = [port.name for port, name in zip(engine.weights, stage.weights, strict=True) if name in stage.parted]
        if not _independent(whole, engine, parted, stage.classes):
            logger.debug("the columns of head %s depend on each other: it runs as a whole", stage.whole)
            continue
        model = with_number(whole, stage.classes, stage.columns)
        model.graph.name = engine.name
        ports = zip(engine.weights, stage.weights, strict=True)
        bound = {port.name: replace(entries[name], shape=port.shape) for port, name in ports}
        save_engine(model, folder / ENGINES / f"{engine.name}.onnx", engine.inputs, engine.outputs, bound)


def _independent(whole: onnx.ModelProto, engine: TokenwiseEngine, parted: list[str], classes: int) -> bool:
    """Whether the scores of some classes are those that the same graph gives for them among more."""
    random, first = np.random.default_rng(0), FEWER
    arrays = {port.name: _random(random, port) for port in engine.inputs}
    for port in engine.weights:
        arrays[port.name] = _random(
            random, replace(port, shape=(FEW, *port.shape[1:])) if port.name in parted else port
        )
    part = arrays | {name: arrays[name][first : first + FEWER] for name in parted}
    try:
        found, among = _run(with_number(whole, classes, FEWER), part), _run(with_number(whole, classes, FEW), arrays)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class: whatever fails, no file
        logger.debug("a head of other numbers of classes can't be run: %s", error)
        return False
    expected = among[..., first : first + FEWER]
    same = found.shape == expected.shape and np.isfinite(expected).all()
    return bool(same and np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())


def _random(random: np.random.Generator, port: Port) -> Array:
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return random.standard_normal(port.shape).astype(dtype)
    return random.integers(0, 2, port.shape) != 0 if dtype.kind == "b" else random.integers(0, 100, port.shape, dtype)


def _run(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(arrays))[0])
