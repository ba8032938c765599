"""Branches that every input takes alike: an ``If`` whose condition compares sizes becomes the branch that it takes.

Exporters that trace a model keep such questions (are there as many queries as keys?) though the answer never changes.
The condition must compare sizes as they are with each other or with numbers, which its operators tell, and be the same
at every length that is tried: short ones, those beside each number, and axes of equal and of different lengths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from twoheads.compiler.frontend.onnx.model.branches import take_branches
from twoheads.graphs.errors import InternalError

__all__ = ["settle_branches"]

logger = logging.getLogger(__name__)

LENGTHS = (1, 2, 13, 18, 29, 64)

LONGEST = 4096
"""Lengths beyond it are not tried, so conditions that compare with a larger number are not settled."""

ENDLESS = 2**31 - 1
"""A number as large as this is the end of a slice that ends nowhere."""

COMPARING = frozenset(
    {
        *("And", "Cast", "Concat", "Constant", "Equal", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less"),
        *("LessOrEqual", "Not", "Or", "ReduceMax", "ReduceMin", "Shape", "Size", "Slice", "Squeeze", "Unsqueeze"),
    }
)
"""Operators that choose and compare numbers and compute no others: what they compare with is in the file."""

SHAPED_BY_DATA = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose results are as large as the data say, so that a size is no question of lengths alone."""

TRIALS = (((1,), 4), ((0,), 0), ((0, 1, 1), -4))
"""What inputs hold, and how much longer each further axis is than the one before."""

ENOUGH = 4 * len(TRIALS)
"""Trials in which the condition must be found; a table of positions may end before the others."""


def settle_branches(model: onnx.ModelProto, path: Path) -> None:
    """Rewrites the graph in place; an ``If`` that data or lengths decide stays, and is refused later."""
    while True:
        graph = model.graph
        names = {node.input[0] for node in graph.node if node.op_type == "If" and node.domain in ("", "ai.onnx")}
        free = sorted(name for name in names if _of_sizes(name, graph))
        found = _conditions(model, free, path) if free else {}
        if not found:
            return
        for name, value in found.items():
            settled = f"{name}/settled"
            graph.initializer.append(numpy_helper.from_array(np.array(value), settled))
            for node in graph.node:
                if node.op_type == "If" and node.input[0] == name:
                    node.input[0] = settled
        take_branches(graph)


def _of_sizes(name: str, graph: onnx.GraphProto) -> bool:
    """Whether a value's numbers depend on no input's, but for how many those are, and in a way that trials show."""
    given = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    path = list(_path(name, graph))
    if any(node.op_type in SHAPED_BY_DATA for node in _computing([name], graph)):
        return False
    if any(node.op_type not in COMPARING for node in path):
        return False
    if any(LONGEST < number < ENDLESS for number in _numbers(path, graph)):
        return False
    read = (_read(node) for node in path if not _counts(node))
    return name not in given and all(given.isdisjoint(operands) for operands in read)


def _path(name: str, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that compute a value, the last one first, up to those that read a size."""
    wanted = {name}
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            yield node
            wanted |= set() if _counts(node) else _read(node)


def _counts(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Shape", "Size")


def _read(node: onnx.NodeProto) -> set[str]:
    """What a node reads, in its branches as well."""
    inner = (each for attribute in node.attribute for each in attribute.g.node)
    return set(node.input).union(*(_read(each) for each in inner))


def _conditions(model: onnx.ModelProto, names: list[str], path: Path) -> dict[str, bool]:
    """The conditions that are the same at every length at which they can be computed."""
    session: Any = None
    seen: dict[str, set[bool]] = {name: set() for name in names}
    runs = 0
    for length, trial in product(sorted({*LENGTHS, *_compared(names, model.graph)}), TRIALS):
        try:
            session = _session(model, names, path) if session is None else session
            values = session.run(names, dict(_example(session, length, *trial)))
        except Exception as error:  # noqa: BLE001 - its exceptions have no common type
            logger.debug("no condition at %d: %s", length, error)  # a table may end before, and axes may have to agree
            continue
        runs += 1
        for name, answers in zip(names, values, strict=True):
            seen[name].update(bool(answer) for answer in np.asarray(answers).reshape(-1))
    return {name: found.pop() for name, found in seen.items() if len(found) == 1 and runs >= ENOUGH}


def _compared(names: Iterable[str], graph: onnx.GraphProto) -> set[int]:
    """Lengths beside the numbers that conditions compare with."""
    numbers = _numbers([node for name in names for node in _path(name, graph)], graph)
    return {int(number) + by for number in numbers if 1 < number <= LONGEST for by in (-1, 0, 1, 2)}


def _numbers(path: list[onnx.NodeProto], graph: onnx.GraphProto) -> set[float]:
    """The numbers that the file holds and nodes read."""
    read = {operand for node in path for operand in node.input}
    held = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in read]
    for node in path:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            value = helper.get_attribute_value(attribute)
            held.append(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value))
    return {float(number) for array in held if array.dtype.kind in "iuf" for number in array.flat}


def _computing(names: Iterable[str], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes that compute values, in order."""
    wanted, found = set(names), list[onnx.NodeProto]()
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted |= _read(node)
    return found[::-1]


def _session(model: onnx.ModelProto, names: list[str], path: Path) -> Any:
    """A session of what computes ``names``."""
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise InternalError("reading ONNX files needs onnxruntime") from error

    part = onnx.ModelProto()
    part.CopyFrom(model)
    nodes = _computing(names, model.graph)
    wanted = set(names).union(*(_read(node) for node in nodes))
    for field, entries in (
        ("node", nodes),
        ("output", (helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None) for name in names)),
        ("input", [value for value in model.graph.input if value.name in wanted]),
        ("initializer", [tensor for tensor in model.graph.initializer if tensor.name in wanted]),
    ):
        values = list(entries)
        del getattr(part.graph, field)[:]
        getattr(part.graph, field).extend(values)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])


_DTYPES: Mapping[str, str] = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


def _example(session: Any, length: int, fill: tuple[int, ...], step: int) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Every input filled with these numbers in turn: batch 1, the lengths of axes, by their names, ``step`` apart."""
    inputs = session.get_inputs()
    named = {(entry.name, at): size or (entry.name, at) for entry in inputs for at, size in enumerate(entry.shape)}
    axes = dict.fromkeys(size for (_, at), size in named.items() if at and not isinstance(size, int))
    first = length if step >= 0 else length - step * (len(axes) - 1)
    lengths = {axis: first + step * at for at, axis in enumerate(axes)}
    for entry in inputs:
        own = [named[entry.name, at] for at in range(len(entry.shape))]
        sizes = [size if isinstance(size, int) else lengths.get(size, 1) for size in own]
        kind = entry.type.removeprefix("tensor(").removesuffix(")")
        yield entry.name, np.resize(np.array(fill, _DTYPES.get(entry.type, kind)), sizes)
