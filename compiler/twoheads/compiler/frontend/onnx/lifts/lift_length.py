"""Lifts the number of tokens that an exporter wrote into a file: a file of 128 tokens becomes one of any number.

The file is run at its own length, and then operator by operator at a shorter one. Where a dimension of an operand
differs between the two, it is the token axis, whatever other sizes are equal to it. What an operator holds of that axis
(an entry of a shape, the end of a slice, an array that is added) is then read from the input's length instead: rows
that count tokens, triangles and rows that are all alike are made anew. Other tables that the exporter cut at its length
stay as long as they are: they end what the model can take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
from onnx import helper

from twoheads.compiler.frontend.onnx.lifts.token_arrays import alike, changed, counts, multiples, triangle
from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph, OnnxNode, run_model
from twoheads.compiler.frontend.onnx.model.read_file import Array
from twoheads.compiler.frontend.onnx.passes.fold import fold_onnx
from twoheads.graphs.errors import CompileError

__all__ = ["lift_length", "trial_length"]

Shape: TypeAlias = tuple[int, ...]

LENGTH = "tokens.length"
"""The number of tokens as int64 ``[1]``, in the lifted graph."""

POSITIONS = "tokens.positions"
"""The numbers of the tokens, int64 ``[tokens]``."""

END = np.iinfo(np.int64).max
BROADCASTING = frozenset(
    """
    Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor
    """.split()  # noqa: SIM905
)
"""Operators that line their operands up from the last dimension on."""


def trial_length(length: int) -> int:
    """A shorter length to run at: no size of a model is likely to be a multiple of it."""
    return next((prime for prime in (29, 23, 13, 7, 5, 3) if prime < length), 1)


def lift_length(
    graph: OnnxGraph, source: str, axis: int, feeds: Mapping[str, Array], outputs: Sequence[str]
) -> OnnxGraph:
    """The graph for any number of tokens.

    Args:
        graph: For one number.
        source: The argument that says how many tokens there are.
        axis: Its token axis.
        feeds: Its arguments at that number.
        outputs: What the graph is for.

    Raises:
        CompileError: An operator holds the number in a way that is not understood; it is named.
    """
    length = feeds[source].shape[axis]
    graph = fold_onnx(_counting(graph, source, axis, length), outputs)
    before = {name: array.shape for name, array in graph.run(outputs, feeds, {}, every=True).items()}
    lift = _Lift(graph, length, before, {name: _shortened(array, length) for name, array in feeds.items()})
    for node in graph.nodes:
        lift.add(node)
    return replace(graph, nodes=tuple(lift.nodes), weights=lift.weights)


def _counting(graph: OnnxGraph, source: str, axis: int, length: int) -> OnnxGraph:
    """The graph with the length, and with its own rows of 0, 1, 2, ... and multiples of them made of positions."""
    weights = {
        **graph.weights,
        f"{LENGTH}.axis": np.array([axis], np.int64),
        f"{LENGTH}.first": np.array([0], np.int64),
    }
    weights |= {f"{LENGTH}.zero": np.array(0, np.int64), f"{LENGTH}.one": np.array(1, np.int64)}
    nodes = [
        helper.make_node("Shape", [source], [f"{LENGTH}.shape"]),
        helper.make_node("Gather", [f"{LENGTH}.shape", f"{LENGTH}.axis"], [LENGTH]),
        helper.make_node("Squeeze", [LENGTH, f"{LENGTH}.first"], [f"{LENGTH}.end"]),
        helper.make_node("Range", [f"{LENGTH}.zero", f"{LENGTH}.end", f"{LENGTH}.one"], [POSITIONS]),
    ]
    for name, array in graph.weights.items():
        if (place := multiples(array, length)) is None:
            continue
        weights[f"{name}.each"] = np.ascontiguousarray(array.take([1], place))
        shape = [-1 if at == place else 1 for at in range(array.ndim)]
        weights[f"{name}.shape"] = np.array(shape, np.int64)
        del weights[name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes += [
            helper.make_node("Cast", [POSITIONS], [f"{name}.cast"], to=kind),
            helper.make_node("Reshape", [f"{name}.cast", f"{name}.shape"], [f"{name}.counted"]),
            helper.make_node("Mul", [f"{name}.counted", f"{name}.each"], [name]),
        ]
    return replace(graph, nodes=(*map(OnnxNode, nodes), *graph.nodes), weights=weights)


def _shortened(array: Array, length: int) -> Array:
    tokens = trial_length(length)
    return array[tuple(slice(0, tokens if size == length and at else size) for at, size in enumerate(array.shape))]


@dataclass(slots=True)
class _Lift:
    """The graph so far, and its values at the shorter length.

    Attributes:
        graph: As it was.
        length: Its number of tokens.
        before: Shapes of all values at that length.
        values: Values at the shorter one.
    """

    graph: OnnxGraph
    length: int
    before: Mapping[str, Shape]
    values: dict[str, Array]
    nodes: list[OnnxNode] = field(default_factory=list[OnnxNode])
    weights: dict[str, Array] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        self.weights |= self.graph.weights

    def add(self, node: OnnxNode) -> None:
        """Appends the operator, lifted."""
        operator = node.proto.op_type
        if operator in BROADCASTING or operator == "Concat":
            made = list(self._with_cut_arrays(node))
        else:
            made = list(_LIFTS.get(operator, _as_it_is)(self, node))
        for each in made:
            self._run(each, node)
        self.nodes += made

    def tokens(self, name: str) -> set[int]:
        """The dimensions of a value that are token axes."""
        if name not in self.values or name not in self.before:
            return set()
        return changed(self.before[name], self.values[name].shape)

    def whole(self, node: OnnxNode, at: int) -> list[int] | None:
        """The whole numbers of a constant operand; ``None`` where it is computed or left out."""
        if at >= len(node.proto.input) or node.proto.input[at] not in self.weights:
            return None
        return [int(number) for number in self.weights[node.proto.input[at]].reshape(-1)]

    def sized(self, node: OnnxNode, at: int, sizes: Sequence[int], factors: Mapping[int, int]) -> Iterator[OnnxNode]:
        """``node`` with the operand ``at`` made of ``sizes``, those in ``factors`` being so many times the length."""
        name = f"{node.outputs[0]}.sizes"
        parts: list[str] = []
        for place, size in enumerate(sizes):
            part = self.constant(f"{name}.{place}", [factors.get(place, size)])
            if place in factors:
                yield OnnxNode(helper.make_node("Mul", [LENGTH, part], [f"{part}.lifted"]), node.layer)
                part = f"{part}.lifted"
            parts.append(part)
        yield OnnxNode(helper.make_node("Concat", parts, [name], axis=0), node.layer)
        yield node.renamed({node.proto.input[at]: name}, {})

    def constant(self, name: str, numbers: Sequence[int]) -> str:
        """A new row of whole numbers."""
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def refuse(self, node: OnnxNode, problem: str) -> CompileError:
        """The error of an operator that holds the number of tokens."""
        return CompileError(
            node.place,
            f"{node.proto.op_type} {problem}, so the file's {self.length} tokens can't be any other number",
            "export it with a dynamic token axis, or compile the torch model",
        )

    def _with_cut_arrays(self, node: OnnxNode) -> Iterator[OnnxNode]:
        """An array of the file that is as long as the input is cut at the input's length."""
        out = self.before[node.outputs[0]]
        lined = {name: len(out) - len(self._shape(name)) for name in node.inputs}
        tokens = {lined[name] + at for name in node.inputs for at in self.tokens(name)}
        tokens |= {at for at, size in enumerate(out) if size == self.length and not self._computed(node, lined, at)}
        if node.proto.op_type == "Concat":
            tokens -= {int(node.attributes["axis"]) % len(out)}
        names: dict[str, str] = {}
        for name in node.inputs:
            shape = self._shape(name)
            axes = [at for at, size in enumerate(shape) if size > 1 and at + lined[name] in tokens]
            if name not in self.weights or not axes:
                continue
            if any(shape[at] != self.length for at in axes):
                raise self.refuse(node, f"lines up its array of the shape {list(shape)} with tokens")
            names[name] = f"{node.outputs[0]}.cut.{len(names)}"
            array = self.weights[name]
            if (numbers := triangle(array, axes)) is not None:
                yield from self.triangle(*numbers, array.dtype, names[name], node.layer)
            else:
                write = self.alike if alike(array, axes) else self.cut
                yield from write(name, axes, names[name], node.layer)
        yield node.renamed(names, {}) if names else node

    def cut(self, name: str, axes: Sequence[int], result: str, layer: str) -> Iterator[OnnxNode]:
        """The first entries of an array of the file along ``axes``, as many as there are tokens."""
        starts = self.constant(f"{result}.starts", [0] * len(axes))
        along, ends = self.constant(f"{result}.axes", axes), LENGTH
        if len(axes) > 1:
            ends = f"{result}.ends"
            yield OnnxNode(helper.make_node("Concat", [LENGTH] * len(axes), [ends], axis=0), layer)
        yield OnnxNode(helper.make_node("Slice", [name, starts, ends, along], [result]), layer)

    def alike(self, name: str, axes: Sequence[int], result: str, layer: str) -> Iterator[OnnxNode]:
        """An array whose entries along ``axes`` are all the same."""
        array = self.weights[name]
        self.weights[f"{result}.one"] = array[tuple(slice(0, 1 if at in axes else None) for at in range(array.ndim))]
        node = OnnxNode(helper.make_node("Expand", [f"{result}.one", "sizes"], [result]), layer)
        yield from self.sized(node, 1, array.shape, dict.fromkeys(axes, 1))

    def triangle(self, seen: Array, hidden: Array, dtype: Any, result: str, layer: str) -> Iterator[OnnxNode]:
        """``[tokens, tokens]``: one number up to the diagonal, another behind it."""
        self.weights[f"{result}.seen"], self.weights[f"{result}.hidden"] = (
            np.array(seen, dtype),
            np.array(hidden, dtype),
        )
        rows, columns = (self.constant(f"{result}.{name}", [at]) for at, name in ((1, "rows"), (0, "columns")))
        yield OnnxNode(helper.make_node("Unsqueeze", [POSITIONS, rows], [f"{result}.row"]), layer)
        yield OnnxNode(helper.make_node("Unsqueeze", [POSITIONS, columns], [f"{result}.column"]), layer)
        yield OnnxNode(helper.make_node("Less", [f"{result}.row", f"{result}.column"], [f"{result}.behind"]), layer)
        if dtype == np.bool_:
            kind = "Not" if seen else "Identity"
            yield OnnxNode(helper.make_node(kind, [f"{result}.behind"], [result]), layer)
            return
        operands = [f"{result}.behind", f"{result}.hidden", f"{result}.seen"]
        yield OnnxNode(helper.make_node("Where", operands, [result]), layer)

    def _computed(self, node: OnnxNode, lined: Mapping[str, int], at: int) -> bool:
        """Whether a dimension of the result is that of an operand which is no array of the file."""
        places = {name: at - lined[name] for name in node.inputs if name not in self.weights}
        return any(place >= 0 and self._shape(name)[place] > 1 for name, place in places.items())

    def _shape(self, name: str) -> Shape:
        return self.weights[name].shape if name in self.weights else self.before[name]

    def _run(self, node: OnnxNode, original: OnnxNode) -> None:
        """Computes the operator's results at the shorter length."""
        given = {name: self.values[name] for name in node.inputs if name in self.values}
        weights = {
            name: replace(self.graph, weights=self.weights).weight(name) for name in node.inputs if name in self.weights
        }
        model, feeds = self.graph.model([node], given, weights, node.outputs, {})
        try:
            self.values |= run_model(model, feeds, node.outputs)
        except CompileError as error:
            raise self.refuse(original, "does not run at another length") from error


def _as_it_is(lift: _Lift, node: OnnxNode) -> Iterator[OnnxNode]:
    yield node


def _reshape(lift: _Lift, node: OnnxNode) -> Iterator[OnnxNode]:
    """A dimension of the result that holds the token axis of the operand is that many times the length."""
    if lift.whole(node, 1) is None:
        yield node
        return
    name, out = node.proto.input[0], lift.before[node.outputs[0]]
    shape = lift.before.get(name, ())
    factors: dict[int, int] = {}
    for axis in sorted(lift.tokens(name)):
        inner = prod(shape[axis + 1 :])
        holding = [
            at
            for at, size in enumerate(out)
            if size > 1 and prod(out[at + 1 :]) <= inner and prod(out[at:]) >= inner * shape[axis]
        ]
        if len(holding) != 1 or out[holding[0]] % lift.length or holding[0] in factors:
            raise lift.refuse(node, f"makes {list(out)} of {list(shape)}")
        factors[holding[0]] = out[holding[0]] // lift.length
    yield from lift.sized(node, 1, out, factors) if factors else [node]


def _expand(lift: _Lift, node: OnnxNode) -> Iterator[OnnxNode]:
    """An entry that is the length is the length, where the operand does not say otherwise."""
    numbers, name = lift.whole(node, 1), node.proto.input[0]
    if numbers is None:
        yield node
        return
    out, tokens = lift.before[node.outputs[0]], lift.tokens(name)
    shape = lift.weights[name].shape if name in lift.weights else lift.before[name]
    ahead = len(out) - len(shape)
    factors = {
        at: 1
        for at, size in enumerate(out)
        if size == lift.length and (at - ahead in tokens or at < ahead or shape[at - ahead] == 1)
    }
    yield from lift.sized(node, 1, out, factors) if factors else [node]


def _slice(lift: _Lift, node: OnnxNode) -> Iterator[OnnxNode]:
    """Bounds in the second half of the token axis count from its end."""
    tokens, names = lift.tokens(node.proto.input[0]), dict[str, str]()
    axes = lift.whole(node, 3) or list(range(len(lift.before[node.outputs[0]])))
    rank = len(lift.before[node.outputs[0]])
    for at in (1, 2):
        numbers = lift.whole(node, at)
        if numbers is None or not any(axis % rank in tokens for axis in axes[: len(numbers)]):
            continue
        lifted = [
            _from_end(number, lift.length, open_end=at == 2) if axis % rank in tokens else number
            for number, axis in zip(numbers, axes, strict=False)
        ]
        names[node.proto.input[at]] = lift.constant(f"{node.outputs[0]}.bounds.{at}", lifted)
    yield node.renamed(names, {}) if names else node


def _gather(lift: _Lift, node: OnnxNode) -> Iterator[OnnxNode]:
    """A row in the second half of the tokens (the last one) counts from their end; all rows in order stay all."""
    numbers, name = lift.whole(node, 1), node.proto.input[0]
    rank = len(lift.before.get(name, ()))
    if numbers is None or not rank or int(node.attributes.get("axis", 0)) % rank not in lift.tokens(name):
        yield node
        return
    index, array = f"{node.outputs[0]}.rows", lift.weights[node.proto.input[1]]
    orders = [at for at, size in enumerate(array.shape) if size == lift.length and counts(array, at)]
    if orders:
        yield from lift.cut(node.proto.input[1], orders[:1], index, node.layer)
        yield node.renamed({node.proto.input[1]: index}, {})
        return
    lifted = [_from_end(number, lift.length, open_end=False) for number in numbers]
    lift.weights[index] = np.array(lifted, np.int64).reshape(array.shape)
    yield node.renamed({node.proto.input[1]: index}, {})


def _from_end(number: int, length: int, *, open_end: bool) -> int:
    if open_end and number >= length:
        return END
    return number - length if 2 * number > length else number


_LIFTS: Mapping[str, Callable[[_Lift, OnnxNode], Iterator[OnnxNode]]] = {
    "Expand": _expand,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
}
"""By operator: how what it holds of the token axis is lifted."""
