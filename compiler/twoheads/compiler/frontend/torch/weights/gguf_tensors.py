"""The tensors of a GGUF file by the names that a transformers model gives them, each expanded when it is read.

The library's own loop expands all of them at once. Its parts are used here: the names, the rearrangements of each
architecture, the expansion of blocks. A rearrangement may make one tensor of several (experts' gates and ups), or
several of one; so a tensor is made by whatever of the file had a part in it, in the file's order. Of stacked experts
one alone is expanded, where an experiment shows that each is made of its own part of the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twoheads.compiler.frontend.torch.weights.gguf_header import FOLDER, LeanGguf, lean_gguf
from twoheads.compiler.frontend.torch.weights.gguf_positions import FACTORS
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor
from twoheads.graphs.errors import CompileError

__all__ = ["expanded", "plain_gguf_reader", "stored_gguf_tensors"]

STACK_DIMENSIONS = 3
"""Of a tensor that may hold the weights of all experts of a layer."""

PART = 1 << 17
"""Numbers that are expanded at a time: what the library makes on the way stays in the processor's caches."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor in the file: its bytes (or numbers) and how they are blocked."""

    name: str
    kind: Any
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def stored_gguf_tensors(path: Path, model: Any, load: Callable[..., Any], small: int) -> dict[str, Tensor]:
    """Float32 tensors by the names of ``model``; those of more than ``small`` numbers are stored ones.

    Args:
        path: The file.
        model: The transformers model that it is for.
        load: The library's ``load_gguf_checkpoint``.
        small: Entries of a tensor that is kept.

    Raises:
        CompileError: The file has tensors for which the model has no place: a part that nothing would compute.
        ValueError, KeyError, NotImplementedError: The file is damaged, or of a kind that the library does not know.
    """
    from transformers import modeling_gguf_pytorch_utils

    library: Any = modeling_gguf_pytorch_utils
    with lean_gguf(path) as lean:
        config = load(str(lean.path), return_tensors=False).get("config", {})
        architecture, parts = _contents(lean)
    processor = library.TENSOR_PROCESSORS.get(architecture, library.TensorProcessor)(config=config)
    with _one_map_of_names():
        names = library.get_gguf_hf_weights_map(model, processor)
    file = _File(path, processor, names)
    made: dict[str, Tensor] = {}
    sources: dict[str, list[_Part]] = {}
    entire: set[str] = set()
    unread: list[str] = []
    for part in parts:  # once, for the shapes and for the small ones
        stacks = _stacks(file, part, small)
        found = stacks or file.tensors([part], numbers=False)
        if any(tensor.numel() <= small for tensor in found.values()):
            found = file.tensors([part])
        if not found and part.name != FACTORS:
            unread.append(part.name)
        entire |= found.keys() - stacks.keys()
        for name, tensor in found.items():
            sources.setdefault(name, []).append(part)
            stored = partial(_stored, file, name, sources[name], stacked=name not in entire)
            made[name] = tensor if tensor.numel() <= small else stored(tensor)
    if unread:
        problem = f"has tensors that transformers does not read from such a file: {unread[0]} ({len(unread)} of such)"
        raise CompileError(str(path), problem, FOLDER)
    return made


def _stacks(file: _File, part: _Part, small: int) -> dict[str, Tensor]:
    """What is made of a part that stacks large weights of experts, without numbers; nothing of any other part.

    Of two entries: what is made of both must be what is made of each.
    """
    if len(part.shape) != STACK_DIMENSIONS or part.shape[0] < 2:
        return {}
    both, second = (file.tensors([part], slice(start, 2)) for start in (0, 1))
    if both.keys() != second.keys() or not all(torch.equal(both[name][1:], second[name]) for name in both):
        return {}
    shapes = {name: (part.shape[0], *two.shape[1:]) for name, two in both.items() if two.shape[0] == 2}
    made = {name: torch.empty(shape, dtype=both[name].dtype, device="meta") for name, shape in shapes.items()}
    return made if len(made) == len(both) and all(tensor.numel() > small for tensor in made.values()) else {}


@contextmanager
def plain_gguf_reader() -> Generator[None]:
    """Within it, the library's reader of headers cuts plain arrays: parts of a memmap take it twice the time."""
    import gguf

    def keep(reader: Any, mapped: npt.NDArray[np.uint8]) -> None:
        vars(reader)["plain"] = mapped.view(np.ndarray)

    plain = property(lambda reader: vars(reader)["plain"], keep)
    with patch.object(gguf, "GGUFReader", type("PlainReader", (gguf.GGUFReader,), {"data": plain})):
        yield


@contextmanager
def _one_map_of_names() -> Generator[None]:
    """The library asks for the map of a file's names once a module, and each time it is made for all layers."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


def _contents(lean: LeanGguf) -> tuple[str, list[_Part]]:
    """The architecture's name, and every tensor with its place in the original file."""
    from gguf import GGUFReader

    reader: Any = GGUFReader(lean.path)
    field: Any = reader.fields["general.architecture"]
    architecture = bytes(field.parts[field.data[0]]).decode()
    start = -(-lean.header_bytes // int(reader.alignment)) * int(reader.alignment)
    parts = [
        _Part(t.name, t.tensor_type, start + t.data_offset - reader.data_offset, t.data.dtype, t.data.shape)
        for t in reader.tensors
    ]
    return architecture, parts


def _stored(file: _File, name: str, parts: Sequence[_Part], like: Tensor, *, stacked: bool) -> StoredTensor:
    def entry(number: int) -> Tensor:
        return file.tensors(parts, slice(number, number + 1))[name][0]

    return StoredTensor(like.shape, like.dtype, lambda: file.tensors(parts)[name], None, entry if stacked else None)


@dataclass(frozen=True, slots=True)
class _File:
    """A GGUF file, the library's rearrangement for its architecture, and the model's names."""

    path: Path
    processor: Any
    names: dict[str, str]

    def tensors(
        self, parts: Sequence[_Part], entries: slice = slice(None), *, numbers: bool = True
    ) -> dict[str, Tensor]:
        """What the library makes of these parts alone, or of these entries of stacks; without ``numbers``, of zeros.

        Zeros tell the shapes: expanding blocks takes several times as long as all that the library does with them.
        """
        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for part in parts:
            mapped = np.memmap(self.path, part.dtype, "r", offset=part.offset, shape=part.shape)
            data = mapped.view(np.ndarray)[entries]  # each part of a memmap would be one, which takes its time
            found = self.processor.process(
                weights=expanded(data, part.kind) if numbers else _zeros(data, part.kind),
                name=part.name,
                tensor_key_mapping=self.names,
                parsed_parameters=parsed,
            )
            if found.name in self.names:
                made = np.ascontiguousarray(found.weights, np.float32)
                parsed["tensors"][self.names[found.name]] = torch.from_numpy(made)
        return parsed["tensors"]


def _zeros(data: npt.NDArray[Any], kind: Any) -> npt.NDArray[np.float32]:
    """Zeros in the shape of :func:`expanded`, read-only, in no memory of that size."""
    return np.broadcast_to(np.float32(0), (*data.shape[:-1], _width(data, kind)))


def _width(data: npt.NDArray[Any], kind: Any) -> int:
    """Numbers of a row of blocks."""
    from gguf import dequantize

    return int(dequantize(data.reshape(-1, data.shape[-1])[:1], kind).shape[-1])


def expanded(data: npt.NDArray[Any], kind: Any) -> npt.NDArray[np.float32]:
    """The numbers of a tensor of blocks, some rows at a time: blocks lie within rows.

    The library gets them as one row, because it works in groups of few.

    Args:
        data: ``[..., bytes of a row]``, or the numbers themselves.
        kind: The library's type of the blocks.
    """
    from gguf import dequantize

    rows = data.reshape(-1, data.shape[-1])
    width = _width(data, kind)
    found = np.empty((len(rows), width), np.float32)
    step = max(1, PART // max(1, width))
    for start in range(0, len(rows), step):
        row = np.ascontiguousarray(rows[start : start + step]).reshape(1, -1)
        found[start : start + step] = dequantize(row, kind).reshape(-1, width)
    return found.reshape(*data.shape[:-1], width)
