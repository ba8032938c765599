"""A captured torch program: the FX nodes behind a :class:`SourceGraph`, and how to evaluate parts of it.

The source graph is what passes read; this is what they cut up and run. Names agree: an FX node and the source node made
from it are called alike, weights by their path in the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program import TOKENS, Dim, Input, TokenwiseEngine

__all__ = ["FxProgram", "TokenwiseRegion", "block_expression", "is_scalar", "tensor_shape"]


def is_scalar(node: fx.Node) -> bool:
    """Whether the node computes a size (a number known from shapes), not a tensor."""
    return isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


def tensor_shape(value: Tensor, symbols: frozenset[str]) -> tuple[Dim, ...]:
    """The shape with the token axis as ``n``; sizes computed from it keep their expression, e.g. ``2*n``."""
    return tuple(_dim(size, symbols) for size in value.shape)


def _dim(size: int | torch.SymInt, symbols: frozenset[str]) -> Dim:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    return str(expression.subs({s: TOKENS for s in expression.free_symbols if str(s) in symbols}))


def block_expression(size: Any, tokens: int) -> Any:
    """A size or condition with ``tokens`` in place of the length."""
    if not isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
        return size
    expression = size.node.expr
    value = (
        expression.subs(dict.fromkeys(expression.free_symbols, tokens)) if hasattr(expression, "subs") else expression
    )
    return (
        float(value)
        if isinstance(size, torch.SymFloat)
        else bool(value)
        if isinstance(size, torch.SymBool)
        else int(value)
    )


@dataclass(frozen=True, slots=True)
class FxProgram:
    """The FX graph of a whole model after normalisation.

    Attributes:
        nodes: Every node that computes something, by name, in topological order.
        placeholders: Source-graph name of every placeholder node, by FX name.
        inputs: The run's inputs.
        weights: Parameters, buffers and constants by source-graph name; referenced, never copied.
        symbols: Names of the shape symbols that mean the number of tokens.
    """

    nodes: Mapping[str, fx.Node]
    placeholders: Mapping[str, str]
    inputs: tuple[Input, ...]
    weights: Mapping[str, Tensor]
    symbols: frozenset[str]

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Names of the nodes that the named ones need, themselves included."""
        needed: set[str] = set()
        stack = [self.nodes[name] for name in names if name in self.nodes]
        while stack:
            node = stack.pop()
            if node.name not in needed:
                needed.add(node.name)
                stack.extend(node.all_input_nodes)
        return needed

    @torch.no_grad()
    def evaluate(self, names: Iterable[str], inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Runs what the named nodes need on ``inputs`` (one length for all); returns every result by name."""
        wanted = tuple(names)
        needed = self.ancestors(wanted)
        results: dict[str, Any] = {}
        for name, node in self.nodes.items():
            if name not in needed:
                continue
            if node.op == "placeholder":
                source = self.placeholders[name]
                results[name] = inputs[source] if source in inputs else self.weights[source]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: results[n.name])
                results[name] = cast("Any", node.target)(*args, **kwargs)
        return results

    def example_inputs(self, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random inputs of ``tokens`` positions: token numbers below their limit, normal features, positions."""
        made: dict[str, Tensor] = {}
        for entry in self.inputs:
            shape, dtype = entry.value.block_shape(tokens), getattr(torch, entry.value.dtype)
            if entry.source == "positions":
                axis = entry.value.token_axis
                view = [-1 if at == axis else 1 for at in range(len(shape))]
                made[entry.value.name] = torch.arange(tokens, dtype=dtype).reshape(view).expand(shape).clone()
            elif entry.source == "zeros":
                made[entry.value.name] = torch.zeros(shape, dtype=dtype)
            elif dtype.is_floating_point:
                made[entry.value.name] = torch.randn(shape, generator=generator).to(dtype)
            else:
                made[entry.value.name] = torch.randint(0, entry.limit or 2, shape, generator=generator).to(dtype)
        return made


@dataclass(frozen=True, slots=True)
class TokenwiseRegion:
    """A token-wise region of the program at a fixed block size, ready to become an engine.

    Attributes:
        program: Where the nodes live.
        nodes: Names of the region's nodes, constants included, in topological order.
        inputs, weights, outputs: Names in the order of the engine's ports.
    """

    program: FxProgram
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]

    def module(self, tokens: int) -> fx.GraphModule:
        """The region as a module ``(*inputs, *weights) -> outputs`` for exactly ``tokens`` positions."""
        graph = fx.Graph()
        env: dict[str, Any] = {}
        sources = {source: name for name, source in self.program.placeholders.items()}
        for at, name in enumerate(self.inputs):
            env[sources.get(name, name)] = graph.placeholder(f"input_{at}")
        for at, name in enumerate(self.weights):
            env[sources[name]] = graph.placeholder(f"weight_{at}")

        def look_up(operand: fx.Node) -> Any:
            if operand.name in env:
                return env[operand.name]
            if is_scalar(operand):
                return block_expression(operand.meta["val"], tokens)
            raise InternalError(f"a region needs {operand.name}, which is neither in it nor an input")

        for name in self.nodes:
            node = self.program.nodes[name]
            args, kwargs = fx.map_arg((node.args, node.kwargs), look_up)
            env[name] = graph.create_node("call_function", node.target, args, kwargs, name)
        graph.output(tuple(env[name] for name in self.outputs))
        return fx.GraphModule(torch.nn.Module(), graph)

    def weight_tensors(self) -> list[Tensor]:
        """The tensors of ``weights``."""
        return [self.program.weights[name] for name in self.weights]

    def port_arguments(self, engine: TokenwiseEngine) -> list[Tensor]:
        """Zero blocks for the engine's inputs, then the weights: arguments to trace the module with."""
        blocks = [torch.zeros(port.shape, dtype=getattr(torch, port.dtype)) for port in engine.inputs]
        return [*blocks, *self.weight_tensors()]
