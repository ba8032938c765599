"""Layers of the original beside the bundle's values: which value is which layer's result, and how far they are apart.

Every layer of the original is fed with the bundle's own value for the layer before it. So an error of one layer is seen
at that layer and at no other, at the size of one layer's rounding; and if every layer agrees, the whole model does.
Nothing is believed about which value belongs to a layer: the nearest one is taken, and a wrong choice is far away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.verification.check import WITHIN_FLOORS, Check, Reference, compare
from twoheads.export.verification.noise_floor import LARGEST_RELATIVE, SUSPECT, Floor, noise_floor, widest
from twoheads.export.verification.report import BUNDLE
from twoheads.export.verification.streamed.bundle_run import TokenRows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAYER", "LayerChecks"]

Array: TypeAlias = npt.NDArray[np.float32]

LAYER = "layer"
"""Does a layer of the bundle give what the original's gives, from the same numbers?"""

SAMPLED = 64
"""Rows by which the nearest value is found."""


@dataclass(slots=True)
class _Layer:
    """The original's result of one layer, by its first evaluation; the bundle's value that it is, and the floor."""

    rows: Array
    value: TokenRows | None
    floor: Floor | None = None


class LayerChecks:
    """Sees the results of layers, evaluation after evaluation.

    Args:
        values: The bundle's, in the order of its program.
        folder: Takes a file for every layer.
    """

    def __init__(self, values: Sequence[TokenRows], folder: Path) -> None:
        self._values = values
        self._folder = folder
        self._next = 0
        self._layers: dict[str, _Layer] = {}

    def first(self, name: str, result: Tensor) -> Tensor | None:
        """The first evaluation's ``result [n, width]`` of layer ``name``; what the next layer is to read, if known."""
        path = self._folder / f"{len(self._layers)}.npy"
        np.save(path, result.numpy())
        layer = self._layers[name] = _Layer(np.load(path, mmap_mode="r"), self._nearest(result.numpy()))
        return _tensor(layer.value)

    def again(self, name: str, result: Tensor) -> Tensor | None:
        """The result of one more evaluation, which is fed with the same numbers."""
        layer = self._layers[name]
        floor = noise_floor(layer.rows, result.numpy())
        layer.floor = floor if layer.floor is None else widest(layer.floor, floor)
        return _tensor(layer.value)

    @property
    def suspect(self) -> bool:
        """Whether some layer's floor is so low that it may be luck."""
        floors = [layer.floor for layer in self._layers.values() if layer.floor is not None]
        return any(floor.value < SUSPECT * floor.max_magnitude for floor in floors)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Layers whose result is none of the bundle's values: it is part of an engine, or it is wrong."""
        return tuple(name for name, layer in self._layers.items() if layer.value is None)

    def checks(self, title: str) -> Iterator[Check]:
        """A check for every layer whose result is a value of the bundle; ``title`` says what the original is."""
        for name, layer in self._layers.items():
            if layer.value is not None and layer.floor is not None:
                reference = Reference(LAYER, title, {name: layer.rows}, {name: layer.floor}, WITHIN_FLOORS)
                yield compare(BUNDLE, name, layer.value.rows, reference)

    def _nearest(self, rows: Array) -> TokenRows | None:
        """The value nearest to ``rows`` among those behind the last one, if rounding or a small fault parts them."""
        fit = [at for at in range(self._next, len(self._values)) if self._values[at].rows.shape == rows.shape]
        if not fit:
            return None
        sample = rows[:SAMPLED]
        at = min(fit, key=lambda place: _distance(self._values[place].rows[:SAMPLED], sample))
        found = self._values[at]
        floor = noise_floor(found.rows, rows)
        if floor.value > LARGEST_RELATIVE * floor.max_magnitude:
            return None
        self._next = at + 1
        return found


def _distance(one: Array, other: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.nan_to_num(np.abs(one - other), nan=np.inf).max(initial=0.0))


def _tensor(value: TokenRows | None) -> Tensor | None:
    import torch

    return None if value is None else torch.from_numpy(np.array(value.rows))
