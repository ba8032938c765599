"""Which modules compute the same: equal classes and settings, whatever their weights are called and hold.

Layers differ in settings that their code does not read while it is captured, such as their number. So a setting that
differs counts only where it was read: :class:`Watch` tells.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

__all__ = ["Setting", "Watch", "differing_settings", "same_setting"]

Setting: TypeAlias = tuple[str, str]
"""A part of a module by its path, and an attribute of it that is neither weight nor part."""

_HELD = ("_parameters", "_buffers", "_modules")
_PLAIN = (int, float, complex, str, bytes, set, frozenset, torch.dtype, torch.device, torch.layout)
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
"""What torch itself keeps in a module, such as hooks: it is read in ways that no watch sees."""


def differing_settings(first: nn.Module, second: nn.Module) -> set[Setting] | None:
    """The settings of ``first`` and its parts that differ in ``second``.

    Returns:
        ``None`` where they differ in more: in parts, classes, shapes of weights, or hooks.
    """
    parts = dict(first.named_modules(remove_duplicate=False))
    others = dict(second.named_modules(remove_duplicate=False))
    if parts.keys() != others.keys():
        return None
    twins = {id(part): others[path] for path, part in parts.items()}
    found: set[Setting] = set()
    for path, part in parts.items():
        mine, theirs = vars(part), vars(others[path])
        if type(part) is not type(others[path]) or mine.keys() != theirs.keys() or _tensors(mine) != _tensors(theirs):
            return None
        names = {name for name in mine if name not in _HELD and not _same(mine[name], theirs[name], twins)}
        if names & _INTERNAL:
            return None
        found |= {(path, name) for name in names}
    return found


def same_setting(first: nn.Module, second: nn.Module, setting: Setting) -> bool:
    """Whether ``setting`` is the same in two modules of equal structure."""
    path, name = setting
    mine, theirs = (vars(module.get_submodule(path)).get(name) for module in (first, second))
    return _same(mine, theirs, {})


def _tensors(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Kinds of a module's weights and buffers by name."""
    held = cast("dict[str, Tensor | None]", {**settings["_parameters"], **settings["_buffers"]})
    return {
        name: tensor if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, type(tensor))
        for name, tensor in held.items()
    }


def _same(first: Any, second: Any, twins: Mapping[int, nn.Module]) -> bool:
    """Whether two values mean the same to code of twin modules; ``False`` where that is not known."""
    if isinstance(first, nn.Module) and id(first) in twins:
        return twins[id(first)] is second
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, _PLAIN):
        return bool(first == second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(_same(*pair, twins) for pair in zip(first, second, strict=True))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(first, dict):
        return list(first) == list(second) and all(_same(first[key], second[key], twins) for key in first)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(first, partial | MethodType):
        names = ("func", "args", "keywords") if isinstance(first, partial) else ("__func__", "__self__")
        return all(_same(getattr(first, name), getattr(second, name), twins) for name in names)
    return False


class Watch:
    """Tells which settings code reads.

    Args:
        names: The attributes that are watched, each with the class of its module.
    """

    def __init__(self, names: Iterable[tuple[type[nn.Module], str]]) -> None:
        self._names = frozenset(names)
        self._readers: list[set[tuple[int, str]]] = []

    @contextmanager
    def installed(self) -> Generator[None]:
        """Within it, reading is seen: the classes have properties in the place of the attributes."""
        with ExitStack() as stack:
            for owner, name in self._names:
                if name in vars(owner):
                    stack.callback(setattr, owner, name, vars(owner)[name])
                else:
                    stack.callback(delattr, owner, name)
                setattr(owner, name, self._property(owner, name, vars(owner).get(name)))
            yield

    @contextmanager
    def reading(self, module: nn.Module) -> Generator[set[Setting]]:
        """Gives a set that has, when the block ends, what was read of ``module`` and its parts within it."""
        seen: set[tuple[int, str]] = set()
        found: set[Setting] = set()
        self._readers.append(seen)
        try:
            yield found
        finally:
            self._readers.remove(seen)
        # A stand-in that a tracer makes of a module shares its dictionary.
        found |= {
            (path, name)
            for path, part in module.named_modules(remove_duplicate=False)
            for at, name in seen
            if at == id(vars(part))
        }

    def _property(self, owner: type[nn.Module], name: str, default: Any) -> property:
        def read(module: nn.Module) -> Any:
            for seen in self._readers:
                seen.add((id(vars(module)), name))
            if name in vars(module):
                return vars(module)[name]
            return getattr(super(owner, module), name) if default is None else default

        def write(module: nn.Module, value: Any) -> None:
            vars(module)[name] = value

        return property(read, write)
