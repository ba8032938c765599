"""Parts of an ONNX graph as models of their own, and their values by ONNX Runtime.

A node keeps the file's operator. Small constants belong to the node, and where an operand was a size that is computed
from the inputs' lengths, the node holds the formula instead: a part is built for given lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper

from twoheads.compiler.frontend.onnx.model.growth import deciding, largest_made, parts
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.ir.size_formula import SizeFormula
from twoheads.compiler.ir.source_graph import place_of
from twoheads.graphs.errors import CompileError, InternalError

__all__ = ["OnnxGraph", "OnnxNode", "Sizes", "run_model"]

EMBEDDED = 1024
"""Entries of a weight that is written into a model that runs once; larger ones are fed by reference."""

IR_VERSION = 10

REMEDY = "export it for operators that the installed ONNX Runtime has"

Sizes: TypeAlias = SizeFormula | tuple[SizeFormula, ...]
"""A whole number, or a row of them."""


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One operator.

    Attributes:
        proto: The operator with its operands and results by name.
        layer: Path of the module it belongs to; may be empty.
        sizes: By place, operands that depend on lengths alone.
        constants: By place, small constant operands.
    """

    proto: onnx.NodeProto
    layer: str = ""
    sizes: Mapping[int, Sizes] = field(default_factory=dict[int, Sizes])
    constants: Mapping[int, Array] = field(default_factory=dict[int, Any])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Operands that are values or weights, each once."""
        own = {*self.sizes, *self.constants}
        return tuple(dict.fromkeys(name for at, name in enumerate(self.proto.input) if name and at not in own))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Results that have a name."""
        return tuple(name for name in self.proto.output if name)

    @property
    def attributes(self) -> dict[str, Any]:
        """Its attributes by name."""
        return {attribute.name: helper.get_attribute_value(attribute) for attribute in self.proto.attribute}

    @property
    def place(self) -> str:
        """The node and its layer, for error messages."""
        return place_of(self.layer, self.outputs[0])

    def renamed(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> OnnxNode:
        """The same with other names for some operands and results."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.proto)
        for names, others in ((proto.input, inputs), (proto.output, outputs)):
            for at, name in enumerate(names):
                names[at] = others.get(name, name)
        return replace(self, proto=proto)

    def operand(self, at: int, lengths: Mapping[str, int]) -> Array | None:
        """What it holds of the operand at a place, at ``lengths``; ``None`` where that is a value or a weight."""
        if at in self.sizes:
            sizes = self.sizes[at]
            numbers = sizes.at(lengths) if isinstance(sizes, SizeFormula) else [size.at(lengths) for size in sizes]
            return np.array(numbers, np.int64)
        return self.constants.get(at)

    def at(self, lengths: Mapping[str, int], taken: Iterable[str] = ()) -> Iterator[onnx.NodeProto]:
        """The operator at ``lengths``, after constants for the operands that it holds; without results in ``taken``."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.proto)
        for at in (*self.constants, *(at for at in self.sizes if at not in self.constants)):
            array = self.operand(at, lengths)
            proto.input[at] = f"{self.outputs[0]}.operand_{at}"
            held = numpy_helper.from_array(cast("Array", array))
            yield helper.make_node("Constant", [], [proto.input[at]], value=held)
        for at, name in enumerate(proto.output):
            if name in taken:
                proto.output[at] = f"{name}.again"
        yield proto


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """Nodes in topological order, and the weights that they read.

    Attributes:
        opsets: Version of each operator set.
        nodes: The operators.
        weights: By name; half-precision ones count as float32.
    """

    opsets: Mapping[str, int]
    nodes: tuple[OnnxNode, ...]
    weights: Mapping[str, Array]

    def needed(self, names: Iterable[str], given: Iterable[str] = ()) -> tuple[OnnxNode, ...]:
        """The nodes that compute ``names`` from weights and ``given`` values."""
        known = set(given)
        wanted = set(names) - known
        found: list[OnnxNode] = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.outputs):
                found.append(node)
                wanted |= set(node.inputs) - known
        return tuple(reversed(found))

    def run(
        self,
        names: Iterable[str],
        given: Mapping[str, Array],
        lengths: Mapping[str, int],
        *,
        every: bool = False,
        optimise: bool = False,
    ) -> dict[str, Array]:
        """Computes ``names`` (with ``every``: and all results on the way) from ``given`` values at ``lengths``."""
        wanted = list(dict.fromkeys(names))
        nodes = self.needed(wanted, given)
        made = [output for node in nodes for output in node.outputs if output not in given]
        some = set(made)
        outputs = made if every else [name for name in wanted if name in some]
        used = {name for node in nodes for name in node.inputs} | set(wanted)
        known = {name: np.asarray(given[name]) for name in sorted(used) if name in given}
        weights = {name: self.weight(name) for name in sorted(used) if name in self.weights and name not in given}
        results = {name: array for name, array in (known | weights).items() if every or name in wanted}
        if outputs:
            results |= self._compute(nodes, known, weights, outputs, lengths, optimise=optimise)
        return results

    def _compute(
        self,
        nodes: Sequence[OnnxNode],
        known: Mapping[str, Array],
        weights: Mapping[str, Array],
        outputs: Sequence[str],
        lengths: Mapping[str, int],
        *,
        optimise: bool,
    ) -> dict[str, Array]:
        """The results ``outputs`` of ``nodes``, part by part: see :mod:`.growth`."""
        pieces = list(parts(nodes))
        last = {name: at for at, piece in enumerate(pieces) for node in piece for name in node.inputs}
        last |= dict.fromkeys(outputs, len(pieces))
        values = dict(known)
        for at, piece in enumerate(pieces):
            for node in piece:
                self._check_growth(node, values, weights, lengths)
            made = [name for node in piece for name in node.outputs if name not in known and last.get(name, -1) > at]
            model, feeds = self.model(piece, values, weights, made, lengths)
            values |= run_model(model, feeds, made, optimise=optimise)
        return {name: values[name] for name in outputs}

    def _check_growth(
        self, node: OnnxNode, values: Mapping[str, Array], weights: Mapping[str, Array], lengths: Mapping[str, int]
    ) -> None:
        operands: dict[int, Array] = {}
        for at in deciding(node.proto):
            found = node.operand(at, lengths)
            if found is None:
                name = node.proto.input[at]
                found = values[name] if name in values else weights[name]
            operands[at] = found
        if operands:
            largest_made(node.proto, operands, f'node "{node.outputs[0]}"')

    def weight(self, name: str) -> Array:
        """The weight as it is computed with: half-precision ones as float32."""
        array = self.weights[name]
        return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array

    def model(
        self,
        nodes: Sequence[OnnxNode],
        given: Mapping[str, Array],
        weights: Mapping[str, Array],
        outputs: Iterable[str],
        lengths: Mapping[str, int],
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """A model of ``nodes`` and what it must be fed; small weights are inside."""
        read = {name for node in nodes for name in node.inputs}
        fed = {name: array for name, array in weights.items() if array.size > EMBEDDED}
        feeds = {name: array for name, array in (dict(given) | fed).items() if name in read}
        graph = helper.make_graph(
            [proto for node in nodes for proto in node.at(lengths, given)],
            "part",
            [_declared(name, array) for name, array in feeds.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(weights[name], name) for name in weights if name in read and name not in fed],
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), feeds


def _declared(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def run_model(
    model: onnx.ModelProto | str, feeds: Mapping[str, Array], outputs: Sequence[str], *, optimise: bool = False
) -> dict[str, Array]:
    """Runs a model (or a file) by ONNX Runtime on one thread; as written, unless ``optimise`` is set.

    Raises:
        CompileError: ONNX Runtime does not know an operator, or fails; its message is repeated.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise InternalError("reading ONNX files needs onnxruntime") from error

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Weights are read once and thrown away: packing them first would cost a copy of each.
    options.add_session_config_entry("session.disable_prepacking", "1")
    source: Any = model if isinstance(model, str) else model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        values = session.run(list(outputs), dict(feeds))
    except Exception as error:  # its exceptions have no common type of their own
        message = " ".join(str(error).split())
        raise CompileError("ONNX Runtime", f"can't run a part of the model: {message[:400]}", REMEDY) from error
    return dict(zip(outputs, cast("list[Array]", values), strict=True))
