"""A failing engine, reduced to the nodes that fail, with all that it takes to see it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from twoheads.export.bundle.writer import write_json
from twoheads.export.debug.cases import Against, Case
from twoheads.export.debug.graph_cuts import node_name, value_types
from twoheads.export.debug.reduce import Reduction, reduce_model
from twoheads.export.progress import Progress
from twoheads.graphs.serialization.json_codec import finite_numbers, to_json

__all__ = ["Fault", "FaultNode", "find_fault", "write_fault"]


@dataclass(frozen=True, slots=True)
class FaultNode:
    """A node that fails: its values as ``name dtype [shape]``, in the node's order."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """What fails.

    Attributes:
        engine: The engine. callers: The stages that call it.
        against: On what.
        kind: See :class:`~twoheads.export.debug.oracles.Failure`.
        message: What the whole engine's failure says. reduced_message: What that of the nodes says.
        error: The largest relative error of the nodes; ``None`` where nothing was computed.
        inputs: Where the values come from.
        nodes_before: How many the engine has. nodes: Those that fail together.
        checks: How many models were tried.
    """

    engine: str
    callers: tuple[str, ...]
    against: str
    kind: str
    message: str
    reduced_message: str
    error: float | None
    inputs: str
    nodes_before: int
    nodes: tuple[FaultNode, ...]
    checks: int


def find_fault(
    case: Case, against: Against, *, message: str = "", progress: Progress | None = None
) -> tuple[Fault, Reduction] | None:
    """Reduces ``case``; ``None`` if it does not fail.

    Args:
        case: What to reduce.
        against: On what it is tried.
        message: As for :func:`~twoheads.export.debug.reduce.reduce_model`.
        progress: Likewise.
    """
    found = reduce_model(case.model, case.inputs, against.yardstick, against.oracle, message=message, progress=progress)
    if found is None:
        return None
    fault = Fault(
        case.name,
        case.callers,
        against.title,
        found.whole.kind,
        found.whole.message,
        found.failure.message,
        found.failure.error,
        case.source,
        len(case.model.graph.node),
        _nodes(found.model),
        found.checks,
    )
    return fault, found


def _nodes(model: onnx.ModelProto) -> tuple[FaultNode, ...]:
    texts = {name: f"{name} {_type_text(value)}" for name, value in value_types(model).items()}
    texts |= {
        tensor.name: f"{tensor.name} {onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)} {list(tensor.dims)}"
        for tensor in model.graph.initializer
    }
    return tuple(
        FaultNode(
            node_name(node),
            node.op_type,
            tuple(texts[name] for name in node.input if name),
            tuple(texts[name] for name in node.output if name),
        )
        for node in model.graph.node
    )


def _type_text(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    return f"{onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)} {dims}"


def write_fault(folder: Path, fault: Fault, reduction: Reduction, command: str) -> None:
    """Writes ``reduced.onnx``, its ``inputs.npz`` and ``expected.npz``, and ``report.json`` with ``command``."""
    folder.mkdir(exist_ok=True)
    (folder / "reduced.onnx").write_bytes(reduction.model.SerializeToString())
    np.savez(folder / "inputs.npz", **dict[str, Any](reduction.inputs))
    np.savez(folder / "expected.npz", **dict[str, Any](reduction.expected))
    write_json(folder / "report.json", finite_numbers({**to_json(fault), "command": command}))
