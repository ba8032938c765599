"""Equal layers in torch.export: the nodes of one are copied for those that follow.

Tracing a layer takes a tenth of a second, and a model has dozens that differ in their weights alone. A layer is copied
only from one that was traced twice with the same result, for two equal layers; whatever is not understood is traced.
The copies have the names and the order that a trace gives, so a graph is the same as without.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.experimental import proxy_tensor
from torch.utils import _pytree as pytree

from twoheads.compiler.frontend.torch.repeats.equal_modules import Setting, Watch, differing_settings, same_setting

__all__ = ["EqualLayers", "LayersLeakError"]

FEWEST = 3
"""Layers in a list: the third is the first that could be copied."""

_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)
_PLAIN = (int, float, str, type(None), torch.dtype, torch.device, *_SIZES)


class LayersLeakError(Exception):
    """A copied layer gives more than its result."""


class EqualLayers:
    """Copies layers of one model while it is traced.

    Args:
        model: Its lists of modules are looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) >= FEWEST]
        found = [layer for number, part in enumerate(lists) for layer in _kinds(number, list(part))]
        # By the dictionary of a layer, which stand-ins that a tracer makes of it share.
        self._layers = {id(vars(layer.module)): layer for layer in found}
        self._watch = Watch(
            (type(layer.module.get_submodule(path)), name) for layer in found for path, name in layer.settings
        )
        self._traced: dict[tuple[int, int], list[_Traced]] = {}

    @contextmanager
    def installed(self) -> Generator[None]:
        """Within it, the model's layers are copied where they can be."""
        with ExitStack() as stack:
            stack.enter_context(self._watch.installed())
            for owner in {type(layer.module) for layer in self._layers.values()}:
                stack.callback(setattr, owner, "forward", owner.forward)
                owner.forward = self._intercepting(owner.forward)
            yield

    @property
    def copies(self) -> int:
        """Layers that were copied so far."""
        return sum(layer.copies for layers in self._traced.values() for layer in layers)

    def require_closed(self, outputs: Iterable[Tensor]) -> None:
        """Called in the trace, when the model has returned ``outputs``.

        Raises:
            LayersLeakError: Something reads a value inside of a copied layer that is no result of it, so that what such
                a layer does is not known, and its copies may be wrong.
        """
        for traced in (layer for layers in self._traced.values() for layer in layers if layer.copies):
            inside = {node for node in traced.nodes if not _is_size(node)}
            hidden = inside - set(traced.results)
            read = hidden & {_node(tensor, traced.call.tracer) for tensor in outputs}
            read |= {node for node in hidden if any(user not in inside and not _is_size(user) for user in node.users)}
            if read:
                raise LayersLeakError(traced.path)

    def _intercepting(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def intercepted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            mode, layer = proxy_tensor.get_proxy_mode(), self._layers.get(id(vars(module)))
            call = None if mode is None or layer is None else _Call.of(layer, args, kwargs, mode.tracer)
            if call is None:
                return forward(module, *args, **kwargs)
            traced = self._traced.setdefault(call.layer.kind, [])
            twin = next((earlier for earlier in traced if earlier.serves(call)), None)
            if twin is not None and twin.confirmed:
                return twin.copied(call)
            before = call.last_node()
            with self._watch.reading(call.layer.module) as read:
                result = forward(module, *args, **kwargs)
            after = _Call.of(call.layer, args, kwargs, call.tracer)
            new = _Traced.of(call, after, before, result, read) if after is not None else None
            if twin is not None:
                traced.remove(twin)
            if new is not None:
                new.confirmed = twin is not None and twin.agrees(new)
                traced.append(new)
            return result

        return intercepted


@dataclass(frozen=True)
class _Layer:
    """A layer of a list.

    Attributes:
        module: The layer.
        kind: Its list, and equal for layers of equal structure.
        settings: Those in which it differs from the first of its kind.
    """

    module: nn.Module
    kind: tuple[int, int]
    settings: frozenset[Setting]

    def equals(self, other: _Layer, read: set[Setting]) -> bool:
        """Whether the layers compute the same where ``read`` is what one of them reads of its settings."""
        differing = read & (self.settings | other.settings)
        return self.kind == other.kind and all(same_setting(self.module, other.module, each) for each in differing)


def _kinds(number: int, modules: Sequence[nn.Module]) -> Iterator[_Layer]:
    firsts: list[nn.Module] = []
    for module in modules:
        found = ((at, differing_settings(first, module)) for at, first in enumerate(firsts))
        kind, settings = next(((at, each) for at, each in found if each is not None), (len(firsts), set[Setting]()))
        if kind == len(firsts):
            firsts.append(module)
        yield _Layer(module, (number, kind), frozenset(settings))


@dataclass(frozen=True)
class _Call:
    """One call of a layer; equal to another with the same arguments.

    Attributes:
        layer: What is called.
        tracer: What traces it.
        structure: Equal for calls that do the same: nesting of arguments, kinds of tensors, everything else by value.
        operands: The nodes of tensors among the arguments, then of the layer's own tensors.
        tensors: These.
    """

    layer: _Layer
    tracer: Any
    structure: tuple[Any, ...]
    operands: tuple[fx.Node, ...]
    tensors: tuple[Tensor, ...] = field(compare=False)

    @staticmethod
    def of(layer: _Layer, args: tuple[Any, ...], kwargs: dict[str, Any], tracer: Any) -> _Call | None:
        """``None`` where something is passed that a layer could do more with than read its value."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
            return None
        module = layer.module
        held = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        own: list[Tensor] = [tensor for named in held for _, tensor in named]
        tensors = tuple(leaf for leaf in (*leaves, *own) if isinstance(leaf, Tensor))
        operands = tuple(node for node in (_node(tensor, tracer) for tensor in tensors) if node is not None)
        if len(operands) < len(tensors):
            return None
        places = [operands.index(node) for node in operands]  # the same tensor may come twice
        described = [_description(leaf) for leaf in (*leaves, *own)]
        return _Call(layer, tracer, (spec, described, places), operands, tensors)

    def last_node(self) -> fx.Node:
        """Of the graph as it is now."""
        return cast("fx.Node", next(iter(reversed(self.tracer.graph.nodes))))

    def path(self) -> str:
        """The path of the layer in the model."""
        return str(list(self.tracer.module_stack.values())[-1][0])


def _node(tensor: Tensor, tracer: Any) -> fx.Node | None:
    """What computes a tensor of the trace; ``None`` for others, and for those whose numbers the tracer knows."""
    found = proxy_tensor.get_proxy_slot(tensor, tracer, None)
    return None if found is None or found.constant is not None else found.proxy.node


def _description(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.dtype, [*map(str, leaf.shape)], [*map(str, leaf.stride())], leaf.requires_grad
    return type(leaf), str(leaf) if isinstance(leaf, _SIZES) else leaf


@dataclass
class _Traced:
    """A layer that was traced.

    Attributes:
        call: Its call.
        path: Its path.
        nodes: All that were made for it, in order.
        result: What it returned.
        results: The nodes of its tensors, then of the call's: a tensor belongs to the last node that returned it.
        read: Settings that differ among layers, and that it read.
        confirmed: An equal layer gave the same nodes.
        copies: How many layers were copied from it.
    """

    call: _Call
    path: str
    nodes: tuple[fx.Node, ...]
    result: Any
    results: tuple[fx.Node, ...]
    read: set[Setting]
    confirmed: bool = False
    copies: int = 0

    @staticmethod
    def of(call: _Call, after: _Call, before: fx.Node, result: Any, read: set[Setting]) -> _Traced | None:
        """What was traced behind ``before``; ``None`` where the layer did something that can't be copied.

        ``after`` is the call with its arguments as they became: something may have been put into a list.
        """
        nodes: list[fx.Node] = []
        node = before.next
        while node.op != "root":
            nodes.append(node)
            node = node.next
        leaves = [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
        results = [_node(leaf, call.tracer) if isinstance(leaf, Tensor) else None for leaf in leaves]
        known = all(results) and all(map(_copyable, nodes)) and not _writes_outside(nodes)
        if not known or after.structure != call.structure:
            return None
        made = tuple(node for node in results if node is not None)
        return _Traced(call, call.path(), tuple(nodes), result, (*made, *after.operands), read)

    def serves(self, call: _Call) -> bool:
        """Whether another call is that of an equal layer with equal arguments."""
        same = call.tracer is self.call.tracer and call.structure == self.call.structure
        return same and self.call.layer.equals(call.layer, self.read)

    def agrees(self, other: _Traced) -> bool:
        """Whether a copy of this layer would be what was traced for the other one."""
        mine, theirs = ([node for node in traced.nodes if not _is_size(node)] for traced in (self, other))
        if len(mine) != len(theirs) or len(self.results) != len(other.results):
            return False
        twins = dict(zip((*self.call.operands, *mine), (*other.call.operands, *theirs), strict=True))

        def size(operand: fx.Node) -> Any:
            return str(operand.meta["val"]) if _is_size(operand) else operand

        return all(
            node.target is twin.target
            and _arguments(node, lambda operand: size(twins.get(operand, operand))) == _arguments(twin, size)
            for node, twin in zip(mine, theirs, strict=True)
        ) and all(twins.get(node, node) is twin for node, twin in zip(self.results, other.results, strict=True))

    def copied(self, call: _Call) -> Any:
        """The result of ``call``, which this layer serves."""
        self.copies += 1
        twins = dict(zip(self.call.operands, call.operands, strict=True))
        paths = self.path, call.path()
        for node in self.nodes:
            twins[node] = _copy(node, call.tracer, twins, paths)
        leaves, spec = pytree.tree_flatten(self.result)
        tensors = dict(zip(self.results[-len(call.tensors) :], call.tensors, strict=True))
        for leaf, node in zip((leaf for leaf in leaves if leaf is not None), self.results, strict=False):
            if node in twins and node not in tensors:
                tensors[node] = cast("Tensor", proxy_tensor.extract_val(leaf))
        for node, tensor in tensors.items():
            if node not in self.call.operands:
                proxy = fx.Proxy(twins[node], call.tracer)
                proxy_tensor.track_tensor_tree(tensor, proxy, constant=None, tracer=call.tracer)
        nodes = iter(self.results)
        return pytree.tree_unflatten(
            [leaf if leaf is None else tensors.get(next(nodes), leaf) for leaf in leaves], spec
        )


def _copyable(node: fx.Node) -> bool:
    """Whether it computes something from its operands, and does nothing else."""
    if node.op != "call_function" or "unbacked_bindings" in node.meta:
        return False
    return isinstance(node.target, OpOverload) or node.target is operator.getitem or _is_size(node)


def _writes_outside(nodes: Sequence[fx.Node]) -> bool:
    """Whether one of ``nodes`` writes in place into a tensor, or a view of one, that none of them made."""
    inside = set(nodes)
    outside = {operand for node in nodes for operand in node.all_input_nodes if operand not in inside}
    kept = {_storage(operand) for operand in outside} - {None}
    return any(_storage(node.args[0]) in kept for node in nodes if _is_mutable(node))


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and cast("Any", node.target)._schema.is_mutable


def _storage(operand: Any) -> int | None:
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    return cast("Any", value.untyped_storage())._cdata if isinstance(value, Tensor) else None


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), _SIZES)


def _arguments(node: fx.Node, operand: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
    """Arguments of a node, the nodes among them replaced by what ``operand`` gives."""
    return fx.map_arg((node.args, node.kwargs), operand)


def _copy(node: fx.Node, tracer: Any, twins: Mapping[fx.Node, fx.Node], paths: tuple[str, str]) -> fx.Node:
    """The same for another layer, at the end of the graph; ``paths`` are those of the two layers."""
    graph, target = tracer.graph, cast("Any", node.target)
    names = [target] if not isinstance(target, OpOverload) else [cast("Any", target).overloadpacket.__name__, target]
    # As the tracer calls it: by one of these, with the next free number.
    name = next(name for name in map(graph._target_to_str, names) if re.fullmatch(rf"{name}(_\d+)?", node.name))
    args, kwargs = _arguments(node, lambda operand: twins.get(operand, operand))
    made = graph.create_node(node.op, target, args, kwargs, name, node.type)
    made.meta = dict(node.meta)
    if (stack := node.meta.get("nn_module_stack")) is not None:
        made.meta["nn_module_stack"] = {
            _moved(key, *paths): (_moved(path, *paths), owner) for key, (path, owner) in stack.items()
        }
    return cast("fx.Node", made)


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith((f"{old}.", f"{old}@")) else path
