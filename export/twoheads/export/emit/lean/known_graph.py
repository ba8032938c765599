"""A graph that rewrites look into: what makes a value, its shape, and the constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["KnownGraph"]

Array = npt.NDArray[Any]


class KnownGraph:
    """A model's graph under rewriting. What nobody reads any more is left out by :meth:`finish`.

    Args:
        model: Of fixed shapes, changed in place.

    Attributes:
        maker: What makes a value; of those that were replaced the last.
        shapes: Of every value that is known.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.maker = {name: node for node in model.graph.node for name in node.output if name}
        values = (*inferred.input, *inferred.output, *inferred.value_info)
        self.shapes = {value.name: _shape(value) for value in values}
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self.types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._outputs = [value.name for value in model.graph.output]  # in an order: it makes that of the operators
        self._declared: list[onnx.ValueInfoProto] = []

    def constant(self, name: str) -> Array | None:
        """The numbers of a value that is constant, weights not among them."""
        if name in self._constants:
            return numpy_helper.to_array(self._constants[name])
        node = self.maker.get(name)
        if node is None or node.op_type != "Constant":
            return None
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if "value" in found:
            return numpy_helper.to_array(found["value"])
        return np.array(next(iter(found.values())))

    def is_number(self, name: str, number: float | None = None) -> bool:
        """Whether a value is one constant number, or that number."""
        found = self.constant(name)
        return found is not None and found.size == 1 and (number is None or float(found.reshape(())) == number)

    def made_by(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The node of that operator that makes a value."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type == operator else None

    def array(self, name: str, array: Array) -> str:
        """A constant, stored once under its name."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
            self._graph.initializer.append(self._constants[name])
            self.shapes[name], self.types[name] = array.shape, self._constants[name].data_type
        return name

    def dims(self, shape: Sequence[int]) -> str:
        """A constant vector of whole numbers."""
        return self.array(f"lean/dims_{'_'.join(map(str, shape))}", np.array(shape, np.int64))

    def add(
        self, operator: str, inputs: Sequence[str], output: str, shape: Sequence[int], domain: str = "", **how: Any
    ) -> str:
        """A further operator of float32 with one result; one that makes ``output`` already is gone."""
        node = helper.make_node(operator, list(inputs), [output], name=output, domain=domain, **how)
        self.put(node, shape)
        return output

    def put(self, node: onnx.NodeProto, shape: Sequence[int]) -> None:
        """Adds an operator whose results are all of that shape and float32; those that made them are gone."""
        for name in filter(None, node.output):
            self.maker[name] = node
            self.shapes[name], self.types[name] = tuple(shape), onnx.TensorProto.FLOAT
            if node.domain:  # shape inference does not know it
                self._declared.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))

    def ordered(self) -> list[onnx.NodeProto]:
        """The operators that the outputs need, in an order in which they can run."""
        order, placed = list[onnx.NodeProto](), set[int]()
        stack = [self.maker[name] for name in self._outputs]
        while stack:
            node = stack[-1]
            makers = (self.maker[name] for name in node.input if name in self.maker)
            missing = [] if id(node) in placed else [maker for maker in makers if id(maker) not in placed]
            if missing:
                stack += missing
                continue
            if id(node) not in placed:
                placed.add(id(node))
                order.append(node)
            stack.pop()
        return order

    def finish(self) -> None:
        """Writes them, and the constants that they read."""
        nodes = self.ordered()
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        read = {name for node in nodes for name in (*node.input, *node.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        infos = {value.name: value for value in (*self._graph.value_info, *self._declared) if value.name in read}
        del self._graph.initializer[:], self._graph.value_info[:]
        self._graph.initializer.extend(kept)
        self._graph.value_info.extend(value for name, value in infos.items() if name not in self._outputs)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
