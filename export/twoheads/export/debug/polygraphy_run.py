"""A model on two evaluators by Polygraphy's comparator, which keeps inputs and outputs in files that its tools read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from polygraphy.backend.base import BaseRunner  # type: ignore[import-untyped]
from polygraphy.common import TensorMetadata  # type: ignore[import-untyped]
from polygraphy.comparator import Comparator  # type: ignore[import-untyped]
from polygraphy.datatype import DataType  # type: ignore[import-untyped]
from polygraphy.logger import G_LOGGER  # type: ignore[import-untyped]

from twoheads.export.debug.evaluators import Arrays, Evaluator
from twoheads.export.debug.graph_cuts import graph_ports

__all__ = ["run_all"]


class _Runner(BaseRunner):  # type: ignore[misc] # Polygraphy has no types
    """An evaluator as Polygraphy runs it."""

    def __init__(self, name: str, evaluate: Evaluator, model: onnx.ModelProto) -> None:
        super().__init__(name=name)
        self._evaluate = evaluate
        self._model = model

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for port in graph_ports(self._model)[0]:
            metadata.add(port.name, DataType.from_dtype(np.dtype(port.dtype)), port.shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        began = time.perf_counter()
        results = self._evaluate(self._model, feed_dict)
        self.inference_time = time.perf_counter() - began
        return results


def run_all(
    model: onnx.ModelProto, inputs: Arrays, evaluators: Mapping[str, Evaluator], save: Path | None
) -> tuple[dict[str, npt.NDArray[Any]], ...]:
    """What each evaluator makes of ``inputs``, by name of the output.

    Args:
        model: Of fixed shapes.
        inputs: By port.
        evaluators: By name.
        save: A folder for ``model.onnx``, ``inputs.json`` and ``outputs.json``, or ``None``.
    """
    runners = [_Runner(name, evaluate, model) for name, evaluate in evaluators.items()]
    files: dict[str, str] = {}
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        (save / "model.onnx").write_bytes(model.SerializeToString())
        files = {f"save_{side}_path": str(save / f"{side}.json") for side in ("inputs", "outputs")}
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        results: Any = Comparator.run(runners, data_loader=[dict(inputs)], **files)
    return tuple(dict(iterations[0].items()) for iterations in results.values())
