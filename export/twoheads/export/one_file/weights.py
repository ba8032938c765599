"""The file's weights: inside of it where they are small, else in one file beside it, each stored once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from twoheads.export.one_file.emit.graph import element_type
from twoheads.graphs.serialization.bundle_format import ALIGNMENT, WeightEntry
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.weights import Weights

__all__ = ["LARGEST_INSIDE", "holds_weights", "total_bytes", "weights_beside", "weights_inside", "write_weights"]

LARGEST_INSIDE = 256_000_000
"""Bytes of weights that are stored inside of the file unless asked otherwise. A page or a program then has one file to
move; beyond 2 GB no file can hold them, and hosts map a file beside it where they would copy this one."""


def total_bytes(bundle: Bundle, names: Iterable[str]) -> int:
    """Bytes of the weights ``names``, those at one place in the bundle once."""
    places = {entry.offset: _nbytes(entry) for name in names if (entry := bundle.manifest.weights[name])}
    return sum(places.values())


def weights_inside(bundle: Bundle, names: Iterable[str]) -> list[TensorProto]:
    """Initializers that hold the weights ``names``."""
    weights = bundle.open_weights()
    return [numpy_helper.from_array(np.ascontiguousarray(weights.view(name)), name) for name in names]


def weights_beside(bundle: Bundle, names: Sequence[str], location: str) -> list[TensorProto]:
    """Initializers that refer to a file beside, in which each weight lies once.

    Args:
        bundle: Has the weights.
        names: Which; those at one place in the bundle are stored once.
        location: What the initializers call that file: its name where it will lie in the end.
    """
    entries, places = bundle.manifest.weights, _places(bundle, names)
    return [_external(name, entries[name], location, places[entries[name].offset][0]) for name in names]


def write_weights(bundle: Bundle, names: Sequence[str], file: Path) -> None:
    """Writes the file that :func:`weights_beside` refers to.

    Raises:
        OSError: The disk refuses.
    """
    weights = bundle.open_weights()
    with file.open("xb") as written:
        for place, name in _places(bundle, names).values():
            written.write(bytes(place - written.tell()))
            written.write(_bytes(weights, name))
            weights.let_go((name,))


def holds_weights(bundle: Bundle, names: Sequence[str], file: Path) -> bool:
    """Whether ``file`` is what :func:`write_weights` would write.

    Raises:
        OSError: It can't be read.
    """
    weights, end = bundle.open_weights(), 0
    with file.open("rb") as held:
        for place, name in _places(bundle, names).values():
            data = _bytes(weights, name)
            if held.read(place - end) != bytes(place - end) or memoryview(held.read(len(data))) != data:
                return False
            end = place + len(data)
            weights.let_go((name,))
        return not held.read(1)


def _places(bundle: Bundle, names: Iterable[str]) -> dict[int, tuple[int, str]]:
    """Of each place in the bundle, in order, where its bytes lie in the file beside, and a weight that they are."""
    places: dict[int, tuple[int, str]] = {}
    end = 0
    for name in names:
        entry = bundle.manifest.weights[name]
        if entry.offset not in places:
            start = end + -end % ALIGNMENT
            places[entry.offset] = start, name
            end = start + _nbytes(entry)
    return places


def _bytes(weights: Weights, name: str) -> memoryview:
    return np.ascontiguousarray(weights.view(name)).reshape(-1).view(np.uint8).data


def _nbytes(entry: WeightEntry) -> int:
    return prod(entry.shape) * np.dtype(entry.dtype).itemsize


def _external(name: str, entry: WeightEntry, location: str, offset: int) -> TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=element_type(entry.dtype), dims=entry.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", _nbytes(entry))):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
