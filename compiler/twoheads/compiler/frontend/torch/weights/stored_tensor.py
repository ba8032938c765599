"""A tensor whose numbers stay where they are stored: every operator that needs them reads them, and forgets them.

To torch it is a tensor of its shape and dtype. An operator that is called with one computes with what
:meth:`StoredTensor.read` returns; only an alias, a cast to another dtype and one entry of a stack give a stored tensor
again. So a model with such parameters computes what it always does, and holds a weight only while an operator runs on
it; of the experts' weights, which the library stacks, one expert's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from twoheads.graphs.errors import InternalError

__all__ = [
    "StoredTensor",
    "keeping_last_weight",
    "parameters_as",
    "read_by_parts",
    "read_tensor",
    "unset_parameters",
]


CONVERTED = 1 << 23
"""Numbers that are converted to another type at a time."""


@dataclass
class _Last:
    """The weight that was read last, while somebody asks to keep it."""

    keepers: int = 0
    key: object = None
    tensor: Tensor | None = None

    def read(self, key: object, read: Callable[[], Tensor]) -> Tensor:
        """What ``read`` returns; not called where it was the last one that was called."""
        if self.keepers and self.key is key and self.tensor is not None:
            return self.tensor
        self.key, self.tensor = None, None  # two weights at a time are one too many
        found = read()
        if self.keepers:
            self.key, self.tensor = key, found
        return found


_LAST = _Last()


@contextmanager
def keeping_last_weight() -> Generator[None]:
    """Within it, operators that follow each other on one weight (experts, one by one) read it once."""
    _LAST.keepers += 1
    try:
        yield
    finally:
        _LAST.keepers -= 1
        if not _LAST.keepers:
            _LAST.key, _LAST.tensor = None, None


class StoredTensor(torch.Tensor):
    """A contiguous tensor on the CPU that is read when it is needed.

    Args:
        shape: Its sizes.
        dtype: Its type.
        read: Returns its numbers, in this shape and type.
        key: Equal for tensors that are the same numbers; ``read`` itself by default.
        part: Returns one entry along the first dimension, where that reads no other.
        rows: Returns the entries from one on to before another along the first dimension, where that reads no other.
    """

    _read: Callable[[], Tensor]
    _part: Callable[[int], Tensor] | None
    _rows: Callable[[int, int], Tensor] | None
    key: object

    def __new__(
        cls: type[StoredTensor],
        shape: torch.Size | tuple[int, ...],
        dtype: torch.dtype,
        read: Callable[[], Tensor],
        key: object = None,
        part: Callable[[int], Tensor] | None = None,
        rows: Callable[[int, int], Tensor] | None = None,
    ) -> StoredTensor:
        made = cast("StoredTensor", cast("Any", torch.Tensor)._make_wrapper_subclass(cls, shape, dtype=dtype))
        made._read, made._part, made._rows, made.key = read, part, rows, read if key is None else key
        return made

    __torch_function__: Any = cast("Any", torch)._C._disabled_torch_function_impl

    def read(self) -> Tensor:
        """The numbers, as a tensor that may lie in a mapped file.

        Raises:
            InternalError: What was stored has another shape or type.
        """
        return _checked(_LAST.read(self.key, self._read), self.shape, self.dtype)

    @property
    def stacked(self) -> bool:
        """Whether entries along its first dimension can be read one by one."""
        return self._part is not None

    def part(self, number: int) -> Tensor:
        """The numbers of one entry along the first dimension.

        Raises:
            InternalError: What was stored has another shape or type, or can't be read so.
        """
        if self._part is None:
            raise InternalError("a stored weight that is no stack was asked for one entry")
        return _checked(self._part(number), self.shape[1:], self.dtype)

    def entry(self, number: int) -> Tensor:
        """One entry along the first dimension, not read yet; of what is no stack, read now."""
        number = range(self.shape[0])[number]
        if self._part is None:
            return self.read()[number]
        return StoredTensor(self.shape[1:], self.dtype, partial(self.part, number))

    def cast(self, dtype: torch.dtype) -> StoredTensor:
        """The same numbers in another type, converted when they are read."""
        part = self._part
        cast_part = None if part is None else lambda number: part(number).to(dtype)
        return StoredTensor(self.shape, dtype, lambda: self._converted(dtype), None, cast_part)

    def _converted(self, dtype: torch.dtype) -> Tensor:
        """The numbers in another type; some rows at a time where they can be read so, which holds no second copy."""
        if self._rows is None:
            return self._read().to(dtype)
        found = torch.empty(self.shape, dtype=dtype)
        step = max(1, CONVERTED // (self.numel() // self.shape[0]))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            found[start:stop] = self._rows(start, stop)
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default) and isinstance(first, StoredTensor):
            return StoredTensor(first.shape, first.dtype, first._read, first.key, first._part, first._rows)
        if func is torch.ops.aten._to_copy.default and isinstance(first, StoredTensor) and kwargs.keys() <= _CASTS:
            return first.cast(kwargs.get("dtype") or first.dtype)
        if func is torch.ops.aten.select.int and isinstance(first, StoredTensor) and args[1] in (0, -first.ndim):
            return first.entry(args[2])
        if func in _BY_PARTS:
            return _BY_PARTS[func](*args, **kwargs)
        args, kwargs = tree_map_only(StoredTensor, StoredTensor.read, (args, kwargs))
        return func(*args, **kwargs)


_BY_PARTS: dict[Any, Callable[..., Any]] = {}


def read_by_parts(operator: Any, compute: Callable[..., Any]) -> None:
    """Has ``operator`` computed by ``compute`` where it is called with stored tensors, which takes their entries."""
    _BY_PARTS[operator] = compute


def _checked(found: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if found.shape != shape or found.dtype != dtype:
        raise InternalError(f"a stored weight is {found.dtype} {tuple(found.shape)}, not {dtype} {tuple(shape)}")
    return found


_CASTS = {"dtype", "device", "non_blocking"}
"""Keywords of a copy that changes the type at most: there is one device."""


def read_tensor(tensor: Tensor) -> Tensor:
    """The tensor, with its numbers in memory."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


@contextmanager
def unset_parameters(module: nn.Module) -> Generator[dict[str, StoredTensor]]:
    """Within it, stored parameters of ``module`` are ordinary ones that hold no numbers: reserved, never touched.

    For whatever looks at shapes alone, such as torch.export. Yields the stored ones by all of their names.
    """
    taken = list(_stored_parameters(module))
    plain: dict[int, nn.Parameter] = {}
    for owner, name, _, stored in taken:
        if id(stored) not in plain:
            empty = torch.empty(stored.shape, dtype=stored.dtype)
            plain[id(stored)] = nn.Parameter(empty, requires_grad=stored.requires_grad)
        setattr(owner, name, plain[id(stored)])
    try:
        yield {path: stored for _, _, path, stored in taken}
    finally:
        for owner, name, _, stored in taken:
            setattr(owner, name, stored)


@contextmanager
def parameters_as(module: nn.Module, dtype: torch.dtype) -> Generator[None]:
    """Within it, stored parameters and all others of ``module`` are of another floating-point type."""
    taken = list(_stored_parameters(module))
    for owner, name, _, _ in taken:
        setattr(owner, name, None)
    module.to(dtype)
    for owner, name, _, stored in taken:
        setattr(owner, name, nn.Parameter(stored.cast(dtype), requires_grad=False))
    try:
        yield
    finally:
        for owner, name, _, _ in taken:
            setattr(owner, name, None)
        module.to(torch.float32)
        for owner, name, _, stored in taken:
            setattr(owner, name, stored)


def _stored_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, str, StoredTensor]]:
    """Every stored parameter: its module, its name there, its path, and itself; shared ones come under each name."""
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if isinstance(parameter, StoredTensor):
                yield owner, name, f"{path}.{name}" if path else name, parameter
