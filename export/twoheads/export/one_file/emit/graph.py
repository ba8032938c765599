"""Graphs of the file under construction: its own, and the bodies of its loops, scans and branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from twoheads.graphs.program.program import Program
from twoheads.runtime.bundle.reader import Bundle

__all__ = [
    "DOMAIN",
    "IR_VERSION",
    "OPSET",
    "Function",
    "Graph",
    "Shared",
    "declared",
    "element_type",
    "file_facts",
    "finished_model",
    "names_read",
]

OPSET = 18
"""Version of the standard operators: what every host reads that was tried, the oldest of them ONNX Runtime 1.21."""

IR_VERSION = 8
"""The ONNX file format that belongs to opset 18."""

DOMAIN = "twoheads"
"""The domain of the local functions, an engine each."""


@dataclass(frozen=True, slots=True)
class Function:
    """An engine as a local function; ``outputs`` tells how many values a call gives.

    ``lifted`` names initializers of the file that every call takes behind its other inputs: constants of the engine
    that are too large to be repeated.
    """

    name: str
    outputs: int
    lifted: tuple[str, ...] = ()


@dataclass(slots=True)
class Shared:
    """What all graphs of a file share: names that were given, local functions, and the initializers by name."""

    names: int = 0
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict[str, onnx.FunctionProto])
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict[str, onnx.TensorProto])
    opsets: dict[str, int] = field(default_factory=dict[str, int])


class Graph:
    """Nodes in order. Values are names, unique in the file; a body reads those of the graphs around it."""

    def __init__(self, shared: Shared | None = None) -> None:
        self.shared = Shared() if shared is None else shared
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def body(self) -> Graph:
        """A new graph for the body of an operator of this one."""
        return Graph(self.shared)

    def fresh(self, hint: str) -> str:
        """A name that no value has."""
        self.shared.names += 1
        return f"th/{hint.lower()}_{self.shared.names}"

    def op(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Appends an operator of one output and gives its value's name."""
        return self.ops(operator, *inputs, outputs=1, name=name, **attributes)[0]

    def ops(
        self, operator: str, *inputs: str, outputs: int, domain: str = "", name: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Appends an operator of several outputs; ``name`` is what an error of the host calls it."""
        given = tuple(self.fresh(operator) for _ in range(outputs))
        node = helper.make_node(operator, list(inputs), list(given), name or given[0], domain=domain, **attributes)
        self.nodes.append(node)
        return given

    def call(self, function: Function, *inputs: str) -> tuple[str, ...]:
        """A call of an engine."""
        return self.ops(function.name, *inputs, *function.lifted, outputs=function.outputs, domain=DOMAIN)

    def constant(self, array: npt.ArrayLike, dtype: str) -> str:
        """A small array; equal ones are stored once in a graph."""
        values = np.asarray(array, dtype)
        key = (dtype, values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=numpy_helper.from_array(values))
        return self._constants[key]

    def ints(self, *numbers: int) -> str:
        """An int64 vector."""
        return self.constant(list(numbers), "int64")

    def int64(self, number: int) -> str:
        """An int64 number without dimensions."""
        return self.constant(number, "int64")

    def float32(self, number: float) -> str:
        """A float32 number without dimensions."""
        return self.constant(number, "float32")

    def reshape(self, value: str, *shape: int) -> str:
        """``value`` in numbers for dimensions, one of which may be -1."""
        return self.op("Reshape", value, self.ints(*shape))

    def vector(self, number: str) -> str:
        """A number without dimensions as a vector ``[1]``."""
        return self.reshape(number, 1)

    def cast(self, value: str, dtype: str) -> str:
        """``value`` as ``dtype``."""
        return self.op("Cast", value, to=element_type(dtype))

    def proto(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[tuple[str, str]]
    ) -> onnx.GraphProto:
        """The finished body; ``outputs`` are values with their dtypes.

        An output is given a name of its own where a body returns what it was given, as the format demands.
        """
        produced = {output for node in self.nodes for output in node.output}
        returned: list[onnx.ValueInfoProto] = []
        for value, dtype in outputs:
            own = value if value in produced else self.op("Identity", value)
            produced.discard(own)
            returned.append(declared(own, dtype))
        return helper.make_graph(self.nodes, name, list(inputs), returned)


def declared(name: str, dtype: str, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    """A port of a body or of the file; ``None`` for a shape leaves it open."""
    return helper.make_tensor_value_info(name, element_type(dtype), shape)


def element_type(dtype: str) -> int:
    """ONNX's number for a NumPy dtype's name."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def file_facts(bundle: Bundle, program: Program) -> dict[str, str]:
    """What a file made of ``bundle`` says about itself; ``program`` has its key tiles."""
    manifest = bundle.manifest
    return {
        "twoheads.source": f"{manifest.source.name} ({manifest.source.architecture})",
        "twoheads.block_size": str(program.block_size),
        "twoheads.key_tile": str(program.key_tile),
        "twoheads.precision": manifest.precision,
        "twoheads.approximations": ", ".join(manifest.approximations) or "none",
    }


def names_read(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Every name that the nodes, or the nodes of their bodies, read."""
    names: list[str] = []
    for node in nodes:
        names += node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names += names_read(attribute.g.node)
    return names


def finished_model(
    graph: Graph,
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto],
    facts: Mapping[str, str],
) -> onnx.ModelProto:
    """The file's own graph as a model.

    Args:
        graph: It.
        name: The source model's.
        inputs: The file's, declared.
        outputs: Likewise.
        weights: Initializers beside those that the graphs share.
        facts: What the file says about itself.
    """
    shared = graph.shared
    proto = helper.make_graph(graph.nodes, name, inputs, outputs, [*weights, *shared.initializers.values()])
    opsets = {"": OPSET, **shared.opsets, DOMAIN: 1}
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
        functions=list(shared.functions.values()),
        ir_version=IR_VERSION,
        producer_name="twoheads",
    )
    helper.set_model_props(model, dict(facts))
    return model
