"""An engine of float32 with weights, ports and products in float16, and the way back.

All that is not a product stays in float32: norms, softmaxes and rotations lose nothing, numbers of positions and what
stands for infinity never meet float16's range. (``build/cast_model.py`` does the opposite, for compilers that take one
type: everything in half precision but the ports.) A result that is read by products alone is never widened, whatever
moves it on the way.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, helper

__all__ = ["narrow_engine", "widen_engine"]

MOVERS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move their first operand as it is, whatever its type."""

BRANCHES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
WIDE = ".float32"
"""Behind a port's name: its float32 form inside of the engine."""


def narrow_engine(model: onnx.ModelProto, ports: Collection[str], weights: Collection[str]) -> onnx.ModelProto:
    """The engine with these ports in float16, and with products with such a weight.

    Args:
        model: Of float32; its weights are graph inputs. Left as it is.
        ports: Inputs, outputs, and weights that products and look-ups alone read, as
            :func:`~twoheads.export.precision.quantised_engine.weight_uses` finds them.
        weights: Which ports are weights.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for value in (*graph.input, *graph.output):
        if value.name in ports:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    values = set(ports).difference(weights)
    nodes = [_renamed(node, {name: name + WIDE for name in values}) for node in graph.node]
    narrowed = _Narrowed(set(ports) - values, {value.name for value in graph.input if value.name in values})
    narrowed.build(nodes)
    narrowed.finish([value.name for value in graph.output], values)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(narrowed.nodes)
    return made


def widen_engine(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same engine with float32 ports and products; weights that are float16 stay so, and are widened as read.

    Args:
        model: As :func:`narrow_engine` or :mod:`~twoheads.export.emit.tile_attention` makes it. Left as it is.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    names = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    read = [_renamed(node, {name: name + WIDE for name in names}) for node in graph.node]
    casts = [_cast(name, name + WIDE, TensorProto.FLOAT) for name in sorted(names)]
    del graph.node[:]
    graph.node.extend([*casts, *read])
    return made


class _Narrowed:
    """The nodes of the new graph. A value may be there as float32, as float16, or as both.

    Args:
        weights: Which are float16.
        ports: The inputs that are float16.
    """

    def __init__(self, weights: set[str], ports: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._weights = weights
        self._given = ports
        self._half = {name + WIDE: name for name in ports}
        self._wide: set[str] = set()
        """Those of ``_half`` that are there as float32, too."""

    def build(self, nodes: Collection[onnx.NodeProto]) -> None:
        """Adds the nodes of an engine of float32, whose float16 ports are called by their names inside."""
        if any(attribute.type in BRANCHES for node in nodes for attribute in node.attribute):
            for name in list(self._half):
                self._widen(name)  # a branch may read anything
        for node in nodes:
            weight = next((name for name in node.input if name in self._weights), None)
            if weight is not None and node.op_type == "Gather":
                self._add(node, list(node.input), half=True)
            elif weight is not None:
                self._product(node)
            elif node.op_type in MOVERS and node.input[0] in self._half and node.input[0] not in self._wide:
                self._add(node, [self._half[node.input[0]], *node.input[1:]], half=True)
            else:
                for name in node.input:
                    self._widen(name)
                self._add(node, list(node.input), half=False)

    def finish(self, outputs: Collection[str], ports: Collection[str]) -> None:
        """Gives the outputs their names, as float16 where they are among ``ports``."""
        names: dict[str, str] = {}
        for name in outputs:
            if name not in ports:
                self._widen(name)
                continue
            half = self._narrow(name + WIDE)
            if half in names or half in self._given:
                self.nodes.append(helper.make_node("Identity", [half], [name], name=f"copy_{name}"))
            else:
                names[half] = name
        self.nodes = [_renamed(node, names) for node in self.nodes]

    def _product(self, node: onnx.NodeProto) -> None:
        """``Gemm`` and ``MatMul`` in float16; what a ``Gemm`` adds is added in float32."""
        added = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else None
        made = onnx.NodeProto()
        made.CopyFrom(node)
        if added is None:
            self._add(made, [self._narrow(node.input[0]), node.input[1]], half=True)
            return
        made.output[0] = f"{node.output[0]}.product"
        self._add(made, [self._narrow(node.input[0]), node.input[1]], half=True)
        self._widen(made.output[0])
        self._widen(added)
        sum_ = helper.make_node("Add", [made.output[0], added], list(node.output), name=f"{node.name}.sum")
        self._add(sum_, list(sum_.input), half=False)

    def _add(self, node: onnx.NodeProto, inputs: list[str], *, half: bool) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        del made.input[:]
        made.input.extend(inputs)
        if half:
            name = node.output[0]
            made.output[0] = self._half[name] = f"{name}.float16"
        self.nodes.append(made)

    def _widen(self, name: str) -> None:
        if name in self._half and name not in self._wide:
            self.nodes.append(_cast(self._half[name], name, TensorProto.FLOAT))
            self._wide.add(name)

    def _narrow(self, name: str) -> str:
        if name not in self._half:
            self._half[name] = f"{name}.float16"
            self._wide.add(name)
            self.nodes.append(_cast(name, self._half[name], TensorProto.FLOAT16))
        return self._half[name]


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A copy of ``node`` that reads and writes by other names."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[:] = [names.get(name, name) for name in node.input]
    made.output[:] = [names.get(name, name) for name in node.output]
    return made


def _cast(given: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [result], name=f"cast_{result}", to=kind)
