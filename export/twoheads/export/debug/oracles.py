"""What says whether a model fails: a backend that is compared, or a vendor's compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from twoheads.export.accelerators.compiler_process import Compiler, run_compiler
from twoheads.export.accelerators.target import Target
from twoheads.export.debug.evaluators import Arrays, Evaluator
from twoheads.export.debug.isolated import EvaluatorCrashedError
from twoheads.export.engines.tensor_error import relative_error
from twoheads.graphs.scratch import scratch_folder

__all__ = ["Failure", "Oracle", "compiler_oracle", "evaluator_oracle"]


@dataclass(frozen=True, slots=True)
class Failure:
    """How a model fails.

    Attributes:
        kind: ``refused``, ``crashed``, ``differs`` (numbers beyond the tolerance) or ``off`` (nodes left to the host).
        message: What the compiler or the backend says, the outputs that differ, or the nodes.
        error: The largest relative error of an output; ``None`` where nothing was computed.
    """

    kind: str
    message: str
    error: float | None


Oracle: TypeAlias = Callable[[onnx.ModelProto, Arrays, Arrays], Failure | None]
"""How a model fails on inputs with these expected outputs; ``None`` where it does not."""


def evaluator_oracle(evaluate: Evaluator, tolerance: float) -> Oracle:
    """Fails where ``evaluate`` raises, or gives values beyond ``tolerance``."""

    def check(model: onnx.ModelProto, inputs: Arrays, expected: Arrays) -> Failure | None:
        try:
            found = evaluate(model, inputs)
        except EvaluatorCrashedError as error:
            return Failure("crashed", str(error), None)
        except Exception as error:  # noqa: BLE001 - whatever a backend raises is its answer
            return Failure("refused", str(error), None)
        return _difference(found, expected, tolerance)

    return check


def compiler_oracle(target: Target, compiler: Compiler, precision: str, device: str | None, tolerance: float) -> Oracle:
    """Fails where the compiler refuses, its emulator, if there is one, differs, or nodes are left to the host."""

    def check(model: onnx.ModelProto, inputs: Arrays, expected: Arrays) -> Failure | None:
        with scratch_folder() as scratch:
            folder = scratch
            request = _request(folder, model, inputs, expected, emulate=target.emulator is not None)
            request |= {"precision": precision, "device": device}
            outcome = run_compiler(target, compiler, [request], folder, lambda _done: None)[request["name"]]
            if outcome.error is not None:
                return Failure("crashed" if outcome.crashed else "refused", outcome.error, None)
            if target.emulator is not None:
                with np.load(request["outputs"]) as outputs:
                    found = {name: outputs[name] for name in outputs.files}
                if failure := _difference(found, expected, tolerance):
                    return failure
        return Failure("off", ", ".join(outcome.off), None) if outcome.off else None

    return check


def _difference(found: Arrays, expected: Arrays, tolerance: float) -> Failure | None:
    errors = {name: relative_error(found[name], want) for name, want in expected.items()}
    wrong = [name for name, error in errors.items() if error > tolerance]
    return Failure("differs", ", ".join(wrong), max(errors.values())) if wrong else None


def _request(
    folder: Path, model: onnx.ModelProto, inputs: Arrays, expected: Arrays, *, emulate: bool
) -> dict[str, Any]:
    """What the harness reads, and the files that it names."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "model.inputs.npz", **dict[str, Any](inputs))
    np.savez(folder / "model.expected.npz", **dict[str, Any](expected))
    (folder / "artifacts").mkdir()
    return {
        "name": "model",
        "onnx": str(folder / "model.onnx"),
        "folder": str(folder / "artifacts"),
        "inputs": str(folder / "model.inputs.npz"),
        "samples": [str(folder / "model.inputs.npz")],
        "outputs": str(folder / "model.outputs.npz") if emulate else None,
        "log": str(folder / "model.log"),
    }
