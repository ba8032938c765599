"""Complex numbers become pairs of real ones in a further last axis: no engine has complex tensors.

Some rotary embeddings are written as products with ``e^(i angle)`` (DeepSeek-V2, Llama 4). A Fourier transform of a
fixed size (FNet) is products with its matrices: the engines' own transform of a length that is no power of two is less
precise than torch's by an order of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import pi
from typing import Any

import torch
from torch import fx

from twoheads.graphs.errors import CompileError

__all__ = ["pair_complex_numbers"]

aten = torch.ops.aten


def pair_complex_numbers(graph: fx.Graph) -> None:
    """Rewrites ``graph`` in place; what reads a complex number by an operator that is not known stays as it is.

    A complex weight (a table of angles) is a pair from here on.

    Raises:
        CompileError: An operator that is not known reads such a weight.
    """
    pairs: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" and _is_complex(node):
            with graph.inserting_after(node):
                pairs[node] = _Builder(graph, pairs).add(node, aten.view_as_real.default, node)
            continue
        rule = _RULES.get(node.target)
        if rule is None or not (_is_complex(node) or any(map(_is_complex, node.all_input_nodes))):
            continue
        if any(_is_complex(operand) and operand not in pairs for operand in node.all_input_nodes):
            continue
        with graph.inserting_before(node):
            made = rule(_Builder(graph, pairs), node, *node.args)
        if _is_complex(node):
            pairs[node] = made
        else:
            node.replace_all_uses_with(made)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    for weight, pair in pairs.items():
        if weight.op == "placeholder":
            _make_real(graph, weight, pair)


def _make_real(graph: fx.Graph, weight: fx.Node, pair: fx.Node) -> None:
    """The weight in the place of the pair that was made of it."""
    others = [user for user in weight.users if user is not pair]
    if others:
        problem = f"computes with complex numbers, {others[0].target}, which no engine has"
        raise CompileError(others[0].name, problem, "write it with sines and cosines")
    if not pair.users:
        return
    weight.meta["val"] = pair.meta["val"]
    pair.replace_all_uses_with(weight)
    graph.erase_node(pair)


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


class _Builder:
    """Adds operators to a graph, with their example values; knows the pairs made so far."""

    def __init__(self, graph: fx.Graph, pairs: Mapping[fx.Node, fx.Node]) -> None:
        self._graph = graph
        self.pairs = pairs

    def add(self, like: fx.Node, target: Callable[..., Any], *operands: Any) -> fx.Node:
        """``target(*operands)``, of the same layer as ``like``."""
        node = self._graph.call_function(target, operands)
        values = fx.map_arg(operands, lambda operand: operand.meta["val"])
        with like.meta["val"].fake_mode:
            node.meta = dict(like.meta) | {"val": target(*values)}
        return node

    def pair(self, like: fx.Node, real: fx.Node, imaginary: fx.Node) -> fx.Node:
        """``[..., 2]``."""
        return self.add(like, aten.stack.default, [real, imaginary], -1)

    def parts(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The real and the imaginary part of a complex node."""
        pair = self.pairs[node]
        return self.add(node, aten.select.int, pair, -1, 0), self.add(node, aten.select.int, pair, -1, 1)


def _polar(build: _Builder, node: fx.Node, size: fx.Node, angle: fx.Node) -> fx.Node:
    parts = (build.add(node, function, angle) for function in (aten.cos.default, aten.sin.default))
    return build.pair(node, *(build.add(node, aten.mul.Tensor, size, part) for part in parts))


def _fourier(
    build: _Builder, node: fx.Node, operand: fx.Node, sizes: Any = None, axes: Sequence[int] = (), norm: Any = None
) -> fx.Node:
    """The transform along ``axes``, one after another: ``(x + i y) (C - i S)`` of cosines and sines."""
    if sizes is not None or norm is not None or not axes:
        problem = "is a Fourier transform of another size or scale than its operand's"
        raise CompileError(node.name, problem, "transform the axes as they are: torch.fft.fftn(x, dim=...)")
    real, imaginary = build.parts(operand) if _is_complex(operand) else (operand, None)
    for axis in axes:
        cosines, sines = _waves(build, node, operand.meta["val"].shape[axis])
        by_cosines, by_sines = (_along(build, node, real, waves, axis) for waves in (cosines, sines))
        if imaginary is None:
            real, imaginary = by_cosines, build.add(node, aten.neg.default, by_sines)
        else:
            more = _along(build, node, imaginary, sines, axis)
            imaginary = build.add(node, aten.sub.Tensor, _along(build, node, imaginary, cosines, axis), by_sines)
            real = build.add(node, aten.add.Tensor, by_cosines, more)
    assert imaginary is not None, "there is an axis"
    return build.pair(node, real, imaginary)


def _along(build: _Builder, node: fx.Node, part: fx.Node, waves: fx.Node, axis: int) -> fx.Node:
    """The product with symmetric ``waves`` along an axis."""
    turned = build.add(node, aten.transpose.int, part, axis, -1)
    return build.add(node, aten.transpose.int, build.add(node, aten.matmul.default, turned, waves), axis, -1)


def _waves(build: _Builder, node: fx.Node, size: int) -> tuple[fx.Node, fx.Node]:
    """Cosines and sines ``[size, size]`` of ``2 pi j k / size``; whole turns are left out while numbers are whole."""
    numbers = build.add(node, aten.arange.default, size)
    rows, columns = (build.add(node, aten.unsqueeze.default, numbers, axis) for axis in (1, 0))
    turns = build.add(node, aten.remainder.Scalar, build.add(node, aten.mul.Tensor, rows, columns), size)
    angles = build.add(node, aten.mul.Tensor, build.add(node, aten.to.dtype, turns, torch.float32), 2 * pi / size)
    return build.add(node, aten.cos.default, angles), build.add(node, aten.sin.default, angles)


def _product(build: _Builder, node: fx.Node, left: Any, right: Any) -> fx.Node:
    if not (isinstance(left, fx.Node) and _is_complex(left)):
        left, right = right, left
    if not (isinstance(right, fx.Node) and _is_complex(right)):
        factor = build.add(node, aten.unsqueeze.default, right, -1) if isinstance(right, fx.Node) else right
        return build.add(node, aten.mul.Tensor, build.pairs[left], factor)
    (a, b), (c, d) = build.parts(left), build.parts(right)
    ac, bd, ad, bc = (build.add(node, aten.mul.Tensor, *pair) for pair in ((a, c), (b, d), (a, d), (b, c)))
    return build.pair(node, build.add(node, aten.sub.Tensor, ac, bd), build.add(node, aten.add.Tensor, ad, bc))


def _with_axes(count: int, more: int = 0) -> Callable[..., fx.Node]:
    """An operator whose first ``count`` arguments after the operand are axes, which now count without the last one."""

    def rule(build: _Builder, node: fx.Node, operand: fx.Node, *arguments: Any) -> fx.Node:
        rank = operand.meta["val"].ndim + more
        axes = [axis % rank for axis in arguments[:count]]
        return build.add(node, node.target, build.pairs[operand], *axes, *arguments[count:])  # type: ignore[arg-type]

    return rule


def _sized(build: _Builder, node: fx.Node, operand: fx.Node, sizes: list[Any]) -> fx.Node:
    return build.add(node, node.target, build.pairs[operand], [*sizes, 2])  # type: ignore[arg-type]


def _same(build: _Builder, _node: fx.Node, operand: fx.Node, *_: Any) -> fx.Node:
    return build.pairs[operand]


_RULES: Mapping[Any, Callable[..., fx.Node]] = {
    aten.polar.default: _polar,
    aten.complex.default: lambda build, node, real, imaginary: build.pair(node, real, imaginary),
    aten.view_as_complex.default: lambda _build, _node, operand: operand,
    aten.fft_fftn.default: _fourier,
    aten.real.default: lambda build, _node, operand: build.parts(operand)[0],
    aten.view_as_real.default: _same,
    aten.mul.Tensor: _product,
    aten.unsqueeze.default: _with_axes(1, more=1),
    aten.transpose.int: _with_axes(2),
    aten.slice.Tensor: _with_axes(1),
    aten.select.int: _with_axes(1),
    aten.view.default: _sized,
    aten.reshape.default: _sized,
    aten.expand.default: _sized,
    **dict.fromkeys(
        (
            aten._to_copy.default,
            aten.to.dtype,
            aten.to.device,
            aten.to.dtype_layout,
            aten.clone.default,
            aten.alias.default,
        ),
        _same,
    ),
}
"""How an operator on complex numbers is written with pairs."""
