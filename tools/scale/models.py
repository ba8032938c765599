"""The bundles and inputs of these measurements: random weights, width 256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tools.small_transformer import SmallTransformer
from twoheads.compiler import compile_model
from twoheads.export import write_bundle

__all__ = ["WINDOW", "Model", "make_bundle", "make_tokens"]

WINDOW = "causal & window(512, 0)"


@dataclass(frozen=True, slots=True)
class Model:
    """What is compiled: 4 heads of 64.

    Attributes:
        mask: Of every layer.
        layers: How many.
        block_size: Tokens of a block and of a key tile.
        classes: Of the head, 0 for none.
        lowering, attention: As for ``twoheads compile``.
    """

    mask: str
    layers: int
    block_size: int = 256
    classes: int = 0
    lowering: str = "tile"
    attention: str = "full"


def make_bundle(path: Path, model: Model) -> Path:
    """Compiles ``model`` into the new folder ``path``."""
    module = SmallTransformer(model.mask, layers=model.layers, heads=4, head_dim=64, classes=model.classes)
    compiled = compile_model(
        module,
        block_size=model.block_size,
        lowering=model.lowering,
        attention=model.attention,
        example_inputs=(torch.zeros(1, 40, dtype=torch.long),),
    )
    return write_bundle(compiled, path)


def make_tokens(folder: Path, length: int) -> Path:
    """A file of ``length`` random token numbers, the same every time."""
    path = folder / f"{length}.npy"
    np.save(path, np.random.default_rng(length).integers(0, 97, length))
    return path
