"""An evaluator in a process of its own, which it may take down."""

from __future__ import annotations

import multiprocessing
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twoheads.export.debug.evaluators import Arrays, Evaluator, find_evaluator
from twoheads.graphs.scratch import scratch_folder

__all__ = ["EvaluatorCrashedError", "EvaluatorError", "isolated_evaluator"]


class EvaluatorError(Exception):
    """What an evaluator in another process raised, as text."""


class EvaluatorCrashedError(Exception):
    """An evaluator's process ended without an answer."""


def isolated_evaluator(name: str) -> Evaluator:
    """The evaluator called ``name``, every model in a new process.

    It raises :class:`EvaluatorError` or :class:`EvaluatorCrashedError`.

    Raises:
        InputError: There is none, or its package is not installed.
    """
    find_evaluator(name)

    def evaluate(model: onnx.ModelProto, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        with scratch_folder() as scratch:
            folder = Path(scratch)
            (folder / "model.onnx").write_bytes(model.SerializeToString())
            np.savez(folder / "inputs.npz", **dict[str, Any](inputs))
            process = multiprocessing.get_context("spawn").Process(target=_evaluate, args=(name, folder))
            process.start()
            process.join()
            if (folder / "error.txt").exists():
                raise EvaluatorError((folder / "error.txt").read_text(encoding="utf-8"))
            if not (folder / "outputs.npz").exists() or process.exitcode:
                raise EvaluatorCrashedError(f"its process ended with {process.exitcode} and no message")
            with np.load(folder / "outputs.npz") as outputs:
                return {output: outputs[output] for output in outputs.files}

    return evaluate


def _evaluate(name: str, folder: Path) -> None:
    """Runs in the other process."""
    try:
        with np.load(folder / "inputs.npz") as inputs:
            given = {port: inputs[port] for port in inputs.files}
        outputs: dict[str, Any] = find_evaluator(name)(onnx.load(folder / "model.onnx"), given)
        np.savez(folder / "outputs.npz", **outputs)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is its answer
        lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
        (folder / "error.txt").write_text(" ".join(line.strip() for line in lines), encoding="utf-8")
