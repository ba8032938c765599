"""Files of operator sets before 13, brought to it by onnx's version converter and compared with what they were.

Operators that take their axes as operands since then had them as attributes, and softmaxes were over all axes from one
on. The converter is not trusted: ONNX Runtime runs the file's own operators and the new ones on the same inputs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, version_converter

from twoheads.graphs.errors import CompileError, InternalError

__all__ = ["OLDEST_OPSET", "bring_up_to_date"]

logger = logging.getLogger(__name__)

OLDEST_OPSET = 13
"""The version that every other reading of a file starts from."""

LENGTHS = (8, 32, 17, 64, 224, 1000, 16000)
"""Of axes without a number: tokens, sides of images, samples."""

LARGEST = 1 << 24
"""Numbers of an input that is tried: a picture with as many rows and columns as a sound has samples is none."""

ENOUGH = 2
"""Lengths that are compared, where the file runs at so many."""

TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-10}
"""By type, relative to the largest magnitude: the same products, in kernels that may add in another order."""

SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")

PAST = re.compile(r"past|cache", re.IGNORECASE)

REMEDY = "export it again with operator set 13 or newer"

Array: TypeAlias = npt.NDArray[Any]


def bring_up_to_date(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with its operators in set 13; the same model if they are of that set or a newer one.

    Args:
        model: All branches that can be settled are; external data stay in their files.
        path: Its file, beside which external data lie.

    Raises:
        CompileError: The converter can't do it, what it made computes something else, or the file runs at no length
            that was tried, so that nothing could be compared.
    """
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model
    where = f"uses operator set {version}, older than {OLDEST_OPSET}"
    for node in model.graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            problem = f"{where}, and holds branches or loops ({node.op_type}), which no converter brings up to date"
            raise CompileError(str(path), problem, REMEDY)
    softmaxes = [node.input[0] for node in model.graph.node if node.op_type in SOFTMAXES]
    outputs = [value.name for value in model.graph.output]
    own = _session(model, [*outputs, *(name for name in softmaxes if name not in outputs)], path, where)
    trials = list(_trials(own, outputs, softmaxes))
    if not trials:
        problem = f"{where}, and runs on none of the inputs by which a newer one could be compared with it"
        raise CompileError(str(path), problem, REMEDY)
    newer = _converted(model, {name: trials[0][1][name].ndim for name in softmaxes}, path, where)
    session = _session(newer, outputs, path, where)
    for feeds, expected in trials:
        _require_same(_results(session, outputs, feeds, path, where), expected, path, where)
    logger.info("%s: its operator set %d is read as %d, with the same results", path.name, version, OLDEST_OPSET)
    return newer


def _converted(model: onnx.ModelProto, ranks: Mapping[str, int], path: Path, where: str) -> onnx.ModelProto:
    """The converter's work; ``ranks`` tells it which softmaxes are over the last axis alone, and stay as they are."""
    told = onnx.ModelProto()
    told.CopyFrom(model)
    known = {value.name for value in told.graph.value_info}
    for name in ranks.keys() - known:
        shape = [f"{name}.{at}" for at in range(ranks[name])]
        told.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    try:
        return version_converter.convert_version(told, OLDEST_OPSET)
    except Exception as error:  # it raises errors of several libraries
        message = " ".join(str(error).split())
        problem = f"{where}, and onnx's version converter can't bring it up to date: {message[:200]}"
        raise CompileError(str(path), problem, REMEDY) from error


def _trials(
    session: Any, outputs: Sequence[str], softmaxes: Sequence[str]
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Inputs of the lengths at which the file runs, and what it makes of them."""
    wanted = list(dict.fromkeys([*outputs, *softmaxes]))
    runs = 0
    for length in LENGTHS:
        try:
            feeds = dict(_example(session, length))
            values = session.run(wanted, feeds)
        except Exception as error:  # noqa: BLE001 - its exceptions have no common type, and some inputs are no numbers
            logger.debug("does not run at %d: %s", length, error)
            continue
        yield feeds, dict(zip(wanted, values, strict=True))
        runs += 1
        if runs == ENOUGH or all(isinstance(size, int) for entry in session.get_inputs() for size in entry.shape[1:]):
            return


_DTYPES: Mapping[str, str] = {"float": "float32", "double": "float64"}


def _example(session: Any, length: int) -> Iterator[tuple[str, Array]]:
    """An array for every input: batch 1, ``length`` along other axes without a number, nothing of a past.

    Raises:
        TypeError: An input holds no numbers.
        ValueError: One would be too large.
    """
    inputs = session.get_inputs()
    batches = {entry.shape[0] for entry in inputs if entry.shape and isinstance(entry.shape[0], str)}
    draw = np.random.default_rng(length)
    for entry in inputs:
        along = 0 if PAST.search(entry.name) else length
        sizes = [
            size if isinstance(size, int) else 1 if at == 0 or size in batches else along
            for at, size in enumerate(entry.shape)
        ]
        if prod(sizes) > LARGEST:
            raise ValueError(f"input {entry.name} of {sizes}")
        kind = entry.type.removeprefix("tensor(").removesuffix(")")
        dtype = np.dtype(_DTYPES.get(kind, kind))
        if dtype.kind == "f":
            yield entry.name, draw.standard_normal(sizes).astype(dtype)
        elif "mask" in entry.name.lower():
            yield entry.name, np.ones(sizes, dtype)
        else:
            yield entry.name, draw.integers(0, 2, sizes).astype(dtype)


def _results(
    session: Any, outputs: Sequence[str], feeds: Mapping[str, Array], path: Path, where: str
) -> dict[str, Array]:
    try:
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))
    except Exception as error:  # its exceptions have no common type
        message = " ".join(str(error).split())
        problem = f"{where}, and what onnx's version converter makes of it does not run: {message[:200]}"
        raise CompileError(str(path), problem, REMEDY) from error


def _require_same(found: Mapping[str, Array], expected: Mapping[str, Array], path: Path, where: str) -> None:
    for name, array in found.items():
        own = expected[name]
        numbers = own[np.isfinite(own)] if own.dtype.kind == "f" else own.reshape(-1)
        largest = float(np.abs(numbers.astype(np.float64)).max(initial=0.0))
        bound = TOLERANCE.get(own.dtype.name, 0.0) * largest
        same = array.shape == own.shape and array.dtype == own.dtype
        if not same or not np.allclose(array, own, rtol=0, atol=bound, equal_nan=True):
            problem = f"{where}, and what onnx's version converter makes of it gives another {name}"
            raise CompileError(str(path), problem, REMEDY)


def _session(model: onnx.ModelProto, outputs: Sequence[str], path: Path, where: str) -> Any:
    """A session of the model as it is written, with these results."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise InternalError("reading ONNX files needs onnxruntime") from error

    part = onnx.ModelProto()
    part.CopyFrom(model)
    own = {value.name for value in part.graph.output}
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in own)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common type
        message = " ".join(str(error).split())
        problem = f"{where}, and ONNX Runtime can't run it to compare it with a newer one: {message[:200]}"
        raise CompileError(str(path), problem, REMEDY) from error
