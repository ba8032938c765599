"""What stands beside a host's result: the original, its own noise, and this runtime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twoheads.compiler.frontend.torch.load_source import LoadedSource, load_source
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.export.engines.tensor_error import relative_error
from twoheads.runtime import load

__all__ = ["Beside", "measure_beside"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Beside:
    """One input.

    Attributes:
        expected: Of the original in float32, flat.
        floor: How far its two evaluations with torch are from each other, as a share of the largest magnitude.
        error: The same of this runtime and the original.
        seconds: Of this runtime's first run, engines open.
    """

    expected: Array
    floor: float
    error: float
    seconds: float


def measure_beside(bundle: Path, model: Path, tokens: Array, output: str) -> Beside:
    """Runs the original twice, and the bundle."""
    source = load_source(model)
    fused, plain = (_original(source, tokens, output, implementation) for implementation in ("fused", "plain"))
    result = load(bundle, check="size").run(tokens, output=output)
    found = np.asarray(result.array).reshape(-1)
    began = time.perf_counter()
    result = load(bundle, check="size").run(tokens, output=output)
    seconds = min(result.report.seconds, time.perf_counter() - began)
    return Beside(fused, relative_error(plain, fused), relative_error(found, fused), seconds)


def _original(source: LoadedSource, tokens: Array, output: str, implementation: str) -> Array:
    given = torch.from_numpy(tokens[None])
    last = torch.tensor([len(tokens) - 1])
    hidden, logits = TorchOriginal(source).hidden_and_logits(given, last, implementation=implementation)
    if output == "last":
        assert logits is not None
        return logits.numpy().reshape(-1)
    mean = hidden.numpy().mean(0)  # as MiniLM's own card pools
    return np.asarray(mean / np.linalg.norm(mean), np.float32)
