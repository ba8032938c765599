"""The file's weights: inside of it where they are small, else in one file beside it, each stored once."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from twoheads.export.one_file.emit.graph import element_type
from twoheads.graphs.serialization.bundle_format import ALIGNMENT, WeightEntry
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["LARGEST_INSIDE", "total_bytes", "weights_beside", "weights_inside"]

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


def weights_beside(bundle: Bundle, names: Iterable[str], file: Path, location: str) -> list[TensorProto]:
    """Initializers that refer to ``file``, which is written.

    Args:
        bundle: Has the weights.
        names: Which; those at one place in the bundle are stored once.
        file: Where they go.
        location: What the initializers call that file: its name where it will lie in the end.

    Raises:
        OSError: The disk refuses.
    """
    weights = bundle.open_weights()
    tensors: list[TensorProto] = []
    places: dict[int, int] = {}
    with file.open("xb") as written:
        for name in names:
            entry = bundle.manifest.weights[name]
            if entry.offset not in places:
                written.write(bytes(-written.tell() % ALIGNMENT))
                places[entry.offset] = written.tell()
                written.write(np.ascontiguousarray(weights.view(name)).reshape(-1).view(np.uint8).data)
                weights.let_go((name,))
            tensors.append(_external(name, entry, location, places[entry.offset]))
    return tensors


def _nbytes(entry: WeightEntry) -> int:
    return prod(entry.shape) * np.dtype(entry.dtype).itemsize


def _external(name: str, entry: WeightEntry, location: str, offset: int) -> TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=element_type(entry.dtype), dims=entry.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", _nbytes(entry))):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
