"""An ONNX graph under construction: nodes with names of their own, and constants that are stored once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from twoheads.graphs.program.engines.port import Port

__all__ = [
    "DOMAIN",
    "FLOAT32_LEVEL",
    "IR_VERSION",
    "OPSET",
    "QUANTISED_PRODUCT",
    "WHOLE_PRODUCT",
    "GraphBuilder",
    "common_opsets",
    "declared_port",
]

OPSET = 20
"""Version of the standard ONNX operators; every operator used here is in ONNX Runtime since 1.17."""

IR_VERSION = 9
"""The ONNX file format that belongs to opset 20."""

DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""

QUANTISED_PRODUCT = "MatMulNBits"
"""The one that multiplies with weights of 8 or 4 bits."""

WHOLE_PRODUCT = "MatMulIntegerToFloat"
"""The one that multiplies whole numbers of 8 bits, and scales their sums."""

FLOAT32_LEVEL = 1
""":data:`QUANTISED_PRODUCT`'s ``accuracy_level`` that computes in float32."""

OLDEST_OPSET = 13
"""Since when the operators that we add between foreign ones have the form in which we use them."""


class GraphBuilder:
    """Nodes and constants of a graph under construction; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.value_info: list[onnx.ValueInfoProto] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Appends a node; without ``output`` its result is named after the operator and the node's number."""
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: float | list[int]) -> str:
        """A float32 scalar or an int64 vector; equal ones are stored once."""
        vector = isinstance(value, list)
        name = f"dims_{'_'.join(map(str, value))}" if isinstance(value, list) else f"number_{value!r}"
        if name not in self.constants:
            array = np.array(value, np.int64 if vector else np.float32)
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def array(self, name: str, array: npt.NDArray[Any]) -> str:
        """A constant array under a name of its own."""
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def reshape(self, value: str, *shape: int, output: str = "") -> str:
        """Another view of ``value``; free inside of the graph, a copy where it is the graph's output."""
        return self.node("Reshape", value, self.constant(list(shape)), output=output)

    def row_max(self, value: str) -> str:
        """The maximum over the last axis, without that axis."""
        return self.node("ReduceMax", value, self.constant([-1]), keepdims=0)

    def join(self, graph: onnx.GraphProto, prefix: str, names: dict[str, str]) -> None:
        """Appends another graph's operators and constants.

        Args:
            graph: A plain list of operators, its ports renamed by ``names``.
            prefix: Of the names of everything else.
            names: Of its ports, here.
        """
        known = {"": "", **names}
        for tensor in graph.initializer:
            constant = onnx.TensorProto()
            constant.CopyFrom(tensor)
            constant.name = known.setdefault(tensor.name, f"{prefix}/{tensor.name}")  # a constant may be a port
            self.constants[constant.name] = constant
        for number, node in enumerate(graph.node):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{prefix}/{node.name or number}"
            del copy.input[:], copy.output[:]
            copy.input.extend(known[name] for name in node.input)
            copy.output.extend(known.setdefault(name, f"{prefix}/{name}") for name in node.output)
            self.nodes.append(copy)
        for value in graph.value_info:  # of operators that shape inference does not know
            declared = onnx.ValueInfoProto()
            declared.CopyFrom(value)
            declared.name = known[value.name]
            self.value_info.append(declared)

    def model(
        self,
        name: str,
        inputs: Iterable[Port],
        outputs: Iterable[Port],
        opsets: Mapping[str, int] | None = None,
        ir_version: int = IR_VERSION,
    ) -> onnx.ModelProto:
        """The finished model with these ports, in order; of our own operator set if no others are given."""
        graph = helper.make_graph(
            self.nodes,
            name,
            list(map(declared_port, inputs)),
            list(map(declared_port, outputs)),
            list(self.constants.values()),
            value_info=self.value_info,
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in sorted((opsets or {"": OPSET}).items())]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="twoheads")


def common_opsets(models: Iterable[onnx.ModelProto], default: int) -> dict[str, int] | None:
    """The operator sets of all models, so that their graphs can be joined.

    Returns:
        ``None`` where they differ, are older than what we add, or a graph is no plain list of operators.
    """
    opsets: dict[str, int] = {}
    for model in models:
        plain = not model.functions and not any(_has_graph(node) for node in model.graph.node)
        for entry in model.opset_import:
            plain &= opsets.setdefault(entry.domain, entry.version) == entry.version
        if not plain:
            return None
    return opsets if opsets.setdefault("", default) >= OLDEST_OPSET else None


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or len(attribute.graphs) for attribute in node.attribute)


def declared_port(port: Port) -> onnx.ValueInfoProto:
    """The port as a graph declares it."""
    return helper.make_tensor_value_info(port.name, helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype)), port.shape)
