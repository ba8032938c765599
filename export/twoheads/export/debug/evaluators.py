"""What computes a whole model of fixed shapes: the runtime's backends, and yardsticks beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from twoheads.export.debug.graph_cuts import graph_ports
from twoheads.graphs.errors import BundleError, InputError, TwoheadsError
from twoheads.graphs.scratch import scratch_folder
from twoheads.runtime.backends.protocol import Backend, EngineFile
from twoheads.runtime.backends.registry import open_backend

__all__ = ["EVALUATORS", "Arrays", "Evaluator", "backend_evaluator", "find_evaluator"]

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

Evaluator: TypeAlias = Callable[[onnx.ModelProto, Arrays], dict[str, npt.NDArray[Any]]]
"""Computes all outputs of a model from its inputs, by name."""

RUN_BACKENDS = ("onnxruntime", "openvino")
"""Backends of a run that open any model: emulators run what was built of a bundle only."""

EVALUATORS = (*RUN_BACKENDS, "onnxruntime-plain", "reference", "tensorrt")
"""Those; ONNX Runtime without any optimisation; ONNX's own reference evaluator; TensorRT."""


def find_evaluator(name: str) -> Evaluator:
    """The evaluator called ``name``; what it needs is imported only now.

    Raises:
        InputError: There is none, or its package is not installed.
    """
    if name in RUN_BACKENDS:
        return backend_evaluator(open_backend(name))
    if name == "onnxruntime-plain":
        return _plain
    if name == "reference":
        return _reference
    if name == "tensorrt":
        return _tensorrt()
    raise InputError("backend", f"{name!r} is unknown", f"use one of: {', '.join(EVALUATORS)}")


def backend_evaluator(backend: Backend) -> Evaluator:
    """Evaluates as a run with ``backend`` does, with the weights inside of the model."""

    def evaluate(model: onnx.ModelProto, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        given, made = graph_ports(model)
        results = {port.name: np.empty(port.shape, port.dtype) for port in made}
        with scratch_folder() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            try:
                call = backend.load_engine(EngineFile(path, given, made, {})).new_call()
            except BundleError as error:  # which names the file that is ours here
                raise TwoheadsError(f"engine {model.graph.name}", error.problem, error.fix) from error
            for number, port in enumerate(given):
                call.bind_input(number, backend.tensor(np.ascontiguousarray(inputs[port.name], port.dtype)))
            for number, port in enumerate(made):
                call.bind_output(number, backend.tensor(results[port.name]))
            call.run()
        return results

    return evaluate


def _plain(model: onnx.ModelProto, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """ONNX Runtime, node by node as the model has them."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return _named(model, session.run(None, _fed(model, inputs)))


def _reference(model: onnx.ModelProto, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The operators' definitions in NumPy."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return _named(model, list(ReferenceEvaluator(model).run(None, _fed(model, inputs))))


def _tensorrt() -> Evaluator:
    """TensorRT in single precision, by Polygraphy's own loaders."""
    try:
        import tensorrt  # type: ignore[import-not-found] # noqa: F401
        from polygraphy.backend.trt import (  # type: ignore[import-untyped]
            CreateConfig,
            EngineFromNetwork,
            NetworkFromOnnxBytes,
            TrtRunner,
        )
    except ImportError as error:
        raise InputError(
            "backend tensorrt", f"can't be imported ({error})", "pip install 'twoheads[tensorrt]'"
        ) from error

    def evaluate(model: onnx.ModelProto, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        network = NetworkFromOnnxBytes(model.SerializeToString())
        with TrtRunner(EngineFromNetwork(network, CreateConfig(tf32=False))) as runner:
            return {name: np.array(value) for name, value in runner.infer(_fed(model, inputs)).items()}

    return evaluate


def _fed(model: onnx.ModelProto, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    return {port.name: np.ascontiguousarray(inputs[port.name], port.dtype) for port in graph_ports(model)[0]}


def _named(model: onnx.ModelProto, results: Iterable[Any]) -> dict[str, npt.NDArray[Any]]:
    return {value.name: np.asarray(result) for value, result in zip(model.graph.output, results, strict=True)}
