"""Has transformers load a model whose large weights stay in their files.

The library does all that it always does: it maps names, converts layouts, stacks experts, ties weights, makes buffers.
Only what it takes for a tensor is a :class:`StoredTensor`. A conversion (of blocks of a GGUF file, of experts into one
array) runs once while the model is loaded, so that the library sees its errors and its shapes, and again whenever the
weight is read; what it made is not kept. Where all it does is to stack experts, it runs without numbers while the model
is loaded, and of one expert alone when that is asked for; so does a stack that lies in the file as it is.

Four functions of the library are ours for that time. Where a version of it lacks one of them, it loads as ever.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.weights.gguf_tensors import plain_gguf_reader, stored_gguf_tensors
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor, read_tensor

__all__ = ["SMALL", "deferred_loading"]

SMALL = 1 << 16
"""Entries of a tensor that is loaded at once: norms, biases, sinks, tables of distances."""

STACK_DIMENSIONS = 3
"""Of the weights of all experts of a layer."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of a safetensors file whose tensors stay there; others are loaded."""


@contextmanager
def deferred_loading() -> Generator[None]:
    """Within it, ``from_pretrained`` makes models whose large floating-point parameters are stored tensors."""
    from transformers import core_model_loading, modeling_gguf_pytorch_utils, modeling_utils
    from transformers.quantizers import quantizer_gguf

    replaced: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
        (modeling_utils, "safe_open", _opener),
        (core_model_loading.WeightConverter, "convert", _deferred_conversion),
        (quantizer_gguf, "load_gguf_state_dict", _deferred_blocks),
        (modeling_gguf_pytorch_utils, "load_gguf_checkpoint", _deferred_gguf),
    )
    with ExitStack() as stack:
        for owner, name, make in replaced:
            if hasattr(owner, name):
                stack.enter_context(patch.object(owner, name, make(getattr(owner, name))))
        yield


def _opener(original: Any) -> Callable[..., Any]:
    """In place of ``safetensors.safe_open``."""

    def open_file(path: Any, **options: Any) -> Any:
        return _File(original, str(path), options)

    return open_file


class _File:
    """A safetensors file that gives out tensors which are read later, each from a mapping of its own.

    A mapping that stays open would keep every page that was read in the process's memory.
    """

    def __init__(self, original: Any, path: str, options: Mapping[str, Any]) -> None:
        self._reopen: Callable[[], Any] = lambda: original(path, **options)
        self._file = self._reopen()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def get_slice(self, name: str) -> Any:
        """The tensor ``name``, not read yet."""
        found = self._file.get_slice(name)
        reopen, shape, dtype = self._reopen, tuple(found.get_shape()), DTYPES.get(found.get_dtype())
        if dtype is None or _count(shape) <= SMALL:
            return found

        def part(number: int) -> Tensor:
            entry: Tensor = reopen().get_slice(name)[number]
            return entry

        def rows(start: int, stop: int) -> Tensor:
            entries: Tensor = reopen().get_slice(name)[start:stop]
            return entries

        stack = part if len(shape) == STACK_DIMENSIONS else None
        return _Slice(found, StoredTensor(shape, dtype, lambda: reopen().get_tensor(name), None, stack, rows))


class _Slice:
    """A slice of a safetensors file: all of it is a stored tensor; everything else is as ever."""

    def __init__(self, original: Any, stored: StoredTensor) -> None:
        self._original, self._stored = original, stored

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __getitem__(self, index: Any) -> Tensor:
        found: Tensor = self._stored if index is ... else self._original[index]
        return found


def _deferred_conversion(original: Callable[..., Any]) -> Callable[..., Any]:
    """In place of ``WeightConverter.convert``, which makes tensors of a model out of those of a file."""

    def convert(converter: Any, name: str, **options: Any) -> Any:
        collected: Mapping[str, list[Tensor]] = converter.materialize_tensors()

        def run(take: _Take, **changed: Any) -> dict[str, Any]:
            converter.collected_tensors = {key: take(tensors) for key, tensors in collected.items()}
            return dict(original(converter, name, **(options | changed)))

        if not any(isinstance(tensor, StoredTensor) for tensors in collected.values() for tensor in tensors):
            return run(_all)
        made = run(_shapes) if _stacks(converter, options) else {}
        if any(_only(found).numel() <= SMALL for found in made.values()) or not made:
            return {target: _deferred(found, target, run) for target, found in run(_all).items()}
        return {target: _deferred(found, target, run, stacked=True) for target, found in made.items()}

    return convert


_Take: TypeAlias = Callable[[list[Tensor]], list[Tensor]]
"""What of a key's collected tensors a conversion is given."""


def _all(tensors: list[Tensor]) -> list[Tensor]:
    return [read_tensor(tensor) for tensor in tensors]


def _shapes(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in tensors]


def _stacks(converter: Any, options: Mapping[str, Any]) -> bool:
    """Whether all that a conversion does is to stack experts and to join the matrices of each."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    first, *rest = converter.operations
    quantises = options.get("hf_quantizer") is not None and converter.quantization_operation is not None
    joins = all(type(each) is Concatenate and each.dim >= 1 for each in rest)
    return type(first) is MergeModulelist and first.dim == 0 and joins and not quantises


def _deferred(found: Any, target: str, run: Callable[..., dict[str, Any]], *, stacked: bool = False) -> Any:
    """What a conversion made, as a stored tensor where it is a large one."""
    tensor = _only(found)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() <= SMALL:
        return found

    def part(number: int) -> Tensor:
        (entry,) = _only(run(lambda tensors: _all(tensors[number : number + 1]), loading_info=None)[target])
        return cast("Tensor", entry).contiguous()

    def whole() -> Tensor:
        made: Tensor = _only(run(_all, loading_info=None)[target])
        return made.contiguous()

    return StoredTensor(tensor.shape, tensor.dtype, whole, None, part if stacked else None)


def _only(found: Any) -> Any:
    return found[0] if isinstance(found, list) else found


def _deferred_blocks(original: Callable[..., Any]) -> Callable[..., Any]:
    """In place of ``load_gguf_state_dict``: a file's tensors, those of blocks as bytes."""

    def load(header: Any) -> dict[str, Any]:
        return {name: _Blocks(Path(header.path), found) for name, found in original(header).items()}

    return load


class _Blocks:
    """The library's lazy tensor of a GGUF file, read from a mapping of its own."""

    def __init__(self, path: Path, found: Any) -> None:
        self._path, self._found = path, found
        self.shape = tuple(found.shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def __getitem__(self, index: Any) -> Tensor:
        data = self._found.data
        start = data.__array_interface__["data"][0] - np.frombuffer(data._mmap, np.uint8).__array_interface__["data"][0]
        if not isinstance(data._mmap, mmap.mmap) or data.nbytes <= SMALL:
            return self._found[index]  # type: ignore[no-any-return]

        def read() -> Tensor:
            fresh = np.memmap(self._path, np.uint8, "r", offset=start, shape=data.shape)
            return type(self._found)(fresh, self._found.ggml_type, self._found.shape)[...]  # type: ignore[no-any-return]

        plain = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
        return StoredTensor(self.shape, plain.get(self._found.ggml_type, torch.uint8), read)


def _deferred_gguf(original: Callable[..., Any]) -> Callable[..., Any]:
    """In place of ``load_gguf_checkpoint``, which reads the architectures that the library has no conversions for.

    A header is read once: a tokenizer asks for it twice, and it takes seconds to read a vocabulary.
    """
    headers: dict[str, dict[str, dict[str, Any]]] = {}

    def load(path: Any, return_tensors: bool = False, model_to_load: Any = None, **options: Any) -> Any:
        if not return_tensors:
            if str(path) not in headers:
                with plain_gguf_reader():
                    headers[str(path)] = original(path, return_tensors=False, model_to_load=model_to_load, **options)
            return {section: dict(entries) for section, entries in headers[str(path)].items()}
        return {"tensors": stored_gguf_tensors(Path(path), model_to_load, original, SMALL)}

    return load


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
