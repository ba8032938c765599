"""A torch region as the program that the ONNX exporter would make of it, without its tracing and decomposing.

The exporter traces a module, then traces it again to decompose what it has no translation for; the second takes
three quarters of its time. A region is a plain list of operators without effects, and nearly all have a translation:
running it once on shapes gives the same program. What is left to do by hand is a short table of operators that are
views, nothing at all, or made of a few others. A region with any other operator takes the exporter's own way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from twoheads.compiler.frontend.torch.fx.fx_program import FxRegion
from twoheads.export.emit.torchlib_registry import translated
from twoheads.graphs.program.program import TokenwiseEngine

__all__ = ["decomposed_program", "undecomposed"]

aten, prims = torch.ops.aten, torch.ops.prims

Arguments: TypeAlias = tuple[Any, ...]
"""Of an operator: nodes and numbers."""

Keywords: TypeAlias = Mapping[str, Any]
"""Likewise."""

Rewrite: TypeAlias = Callable[[fx.Graph, Arguments, Keywords], Any]
"""Appends what an operator is made of and returns its node; ``None`` where it can't say."""


def decomposed_program(region: FxRegion, engine: TokenwiseEngine, opset: int) -> ExportedProgram | None:
    """The region at the size of ``engine``, of operators that have a translation to ONNX alone.

    Returns:
        ``None`` where an operator is neither translated for ``opset`` nor in the table of this module.
    """
    module = region.module(region.block_size(engine))
    with FakeTensorMode() as mode, torch.no_grad():
        arguments = [mode.from_tensor(argument) for argument in region.port_arguments(engine)]
        try:
            graph = _rewritten(module.graph, arguments, translated(opset))
        except (RuntimeError, ValueError):  # the exporter knows better, or says what is wrong
            return None
    return None if graph is None else _program(graph, tuple(arguments))


@contextmanager
def undecomposed(wanted: bool) -> Generator[None]:
    """Within it, ``torch.onnx.export`` takes a program as it is. What does so is not public, see ``translated``."""
    if not wanted:
        yield
        return
    from torch.onnx._internal.exporter import _fx_passes

    original = _fx_passes.decompose_with_registry
    _fx_passes.decompose_with_registry = lambda exported_program, registry: exported_program
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = original


def _rewritten(source: fx.Graph, arguments: list[Any], known: frozenset[Any]) -> fx.Graph | None:
    """The graph with every value's shape, run once on ``arguments``."""
    graph, env, inputs = fx.Graph(), dict[fx.Node, fx.Node](), iter(arguments)
    for node in source.nodes:
        if node.op == "output":
            results = [env[result] for result in node.args[0]]
            if len({*results}) < len(results) or any(result.op == "placeholder" for result in results):
                return None
            graph.output(tuple(results))
            continue
        if node.op == "placeholder":
            env[node] = graph.placeholder(node.name)
            env[node].meta["val"] = next(inputs)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: env[operand])
        made = _appended(graph, node.target, args, kwargs, known)
        if made is None:
            return None
        env[node] = made
    return graph


def _appended(graph: fx.Graph, target: Any, args: Arguments, kwargs: Keywords, known: frozenset[Any]) -> fx.Node | None:
    if target in _REWRITES:
        made: fx.Node | None = _REWRITES[target](graph, args, kwargs)
        return made
    return _call(graph, target, args, kwargs) if target in known or target is operator.getitem else None


def _call(graph: fx.Graph, target: Any, args: Arguments, kwargs: Keywords | None = None) -> fx.Node:
    values, named = fx.map_arg((args, dict(kwargs or {})), lambda operand: operand.meta["val"])
    value = target(*values, **named)
    node = graph.call_function(target, args, dict(kwargs or {}))
    node.meta["val"] = value
    return node


def _cast(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> Any:
    """``aten.to``: a copy of another type, or nothing. All tensors are on the processor."""
    dtypes = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
    if not dtypes or args[0].meta["val"].dtype == dtypes[0]:
        return args[0]
    return _call(graph, aten._to_copy.default, args[:1], {"dtype": dtypes[0]})


def _contiguous(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> Any:
    memory_format = dict(zip(("input", "memory_format"), args, strict=False), **kwargs).get("memory_format")
    if memory_format not in (None, torch.contiguous_format):
        return None
    return args[0] if args[0].meta["val"].is_contiguous() else _copy(graph, args[0])


def _copy(graph: fx.Graph, x: fx.Node) -> fx.Node:
    return _call(graph, aten.clone.default, (x,), {"memory_format": torch.contiguous_format})


def _dropout(_graph: fx.Graph, args: Arguments, kwargs: Keywords) -> Any:
    return None if dict(zip(("input", "p", "train"), args, strict=False), **kwargs)["train"] else args[0]


def _reshape(graph: fx.Graph, args: Arguments, _kwargs: Keywords) -> fx.Node:
    """A view where strides allow one, else a view of a copy."""
    try:
        return _call(graph, aten.view.default, args)
    except (RuntimeError, ValueError):
        shape = aten.reshape.default(args[0].meta["val"], *args[1:]).shape
        return _call(graph, aten._unsafe_view.default, (_copy(graph, args[0]), list(shape)))


def _flatten(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> fx.Node:
    shape = aten.flatten.using_ints(args[0].meta["val"], *args[1:], **kwargs).shape
    return _reshape(graph, (args[0], list(shape)), {})


def _chunk(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> fx.Node:
    named = dict(zip(("self", "chunks", "dim"), args, strict=False), **kwargs)
    axis = named.get("dim", 0)
    size = -(-args[0].meta["val"].shape[axis] // named["chunks"])
    return _call(graph, aten.split.Tensor, (args[0], size, axis))


def _mt(graph: fx.Graph, args: Arguments, _kwargs: Keywords) -> fx.Node:
    return _call(graph, aten.transpose.int, (args[0], -2, -1))


def _square(graph: fx.Graph, args: Arguments, _kwargs: Keywords) -> fx.Node:
    return _call(graph, aten.pow.Tensor_Scalar, (args[0], 2))


def _subtracted(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> Any:
    """A number less a tensor."""
    named = dict(zip(("self", "other", "alpha"), args, strict=False), **kwargs)
    return None if named.get("alpha", 1) != 1 else _call(graph, aten.sub.Tensor, (named["other"], named["self"]))


def _variance(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> Any:
    named = dict(zip(("self", "dim", "unbiased", "keepdim"), args, strict=False), **kwargs)
    if not named["dim"] or not named.get("keepdim"):
        return None
    shape = [*named["self"].meta["val"].shape]
    axes = [axis % len(shape) for axis in named["dim"]]
    made = _call(graph, prims.var.default, (named["self"], axes, float(named.get("unbiased", True))))
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    sizes = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return _call(graph, prims.broadcast_in_dim.default, (made, sizes, kept))


def _normed(graph: fx.Graph, args: Arguments, kwargs: Keywords) -> Any:
    """RMSNorm of float32."""
    named = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False), **kwargs)
    x, weight, eps = named["input"], named.get("weight"), named.get("eps")
    value = x.meta["val"]
    if value.dtype != torch.float32:
        return None
    axes = [value.ndim - 1 - at for at in range(len(named["normalized_shape"]))]
    mean = _call(graph, aten.mean.dim, (_square(graph, (x,), {}), axes, True))
    added = _call(graph, aten.add.Scalar, (mean, torch.finfo(value.dtype).eps if eps is None else eps))
    made = _call(graph, aten.mul.Tensor, (x, _call(graph, aten.rsqrt.default, (added,))))
    made = made if weight is None else _call(graph, aten.mul.Tensor, (made, weight))
    return _call(graph, aten.type_as.default, (made, x))


_REWRITES: dict[Any, Rewrite] = {
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten.dropout.default: _dropout,
    aten.contiguous.default: _contiguous,
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _flatten,
    aten.chunk.default: _chunk,
    aten.mT.default: _mt,
    aten.square.default: _square,
    aten.rsub.Scalar: _subtracted,
    aten.var.dim: _variance,
    aten.rms_norm.default: _normed,
}
"""What the dispatcher makes of operators that are composed of others and may return their argument, and of others that
have no translation."""


def _program(graph: fx.Graph, arguments: Arguments) -> ExportedProgram:
    results: Any = graph.output_node().args[0]
    inputs = [TensorArgument(node.name) for node in graph.nodes if node.op == "placeholder"]
    outputs = [TensorArgument(node.name) for node in results]
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, value, None) for value in inputs],
        [OutputSpec(OutputKind.USER_OUTPUT, value, None) for value in outputs],
    )
    structures = pytree.tree_structure((arguments, {})), pytree.tree_structure(tuple(outputs))
    call = ModuleCallEntry("", ModuleCallSignature([*inputs], [*outputs], *structures))
    return ExportedProgram(torch.nn.Module(), graph, signature, {}, {}, [call])
