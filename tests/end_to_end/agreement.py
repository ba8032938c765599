"""How the tests compare a bundle with the model it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from twoheads.compiler import CompiledModel, compile_model
from twoheads.compiler.sources import LoadedSource
from twoheads.export import write_bundle
from twoheads.runtime import LoadedBundle, load

PASS = 4.0
"""A bundle passes at this many times the noise floor."""

SMALLEST = 2e-7
"""The noise floor is never below this share of the largest magnitude."""


def bundle_of(model: nn.Module | Path, folder: Path, **options: Any) -> LoadedBundle:
    compiled: CompiledModel = compile_model(model, **options)
    return load(write_bundle(compiled, folder / "bundle"))


def assert_agrees(bundle: LoadedBundle, source: LoadedSource, length: int, seed: int = 0) -> None:
    """Hidden states, logits and call counts of one random input against two evaluations of the original."""
    tokens = np.random.default_rng(seed + length).integers(0, vocabulary(bundle), length)
    ids = torch.from_numpy(tokens)[None]
    fused = source.hidden_and_logits(ids, None, "fused")
    plain = source.hidden_and_logits(ids, None, "plain")
    for output, first, second in zip(("hidden", "logits"), fused, plain, strict=True):
        if first is None or second is None:
            continue
        result = bundle.run(tokens, output=output)
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        assert result.array is not None
        expected = first.detach().numpy()
        floor = max(float((first - second).abs().max()), SMALLEST * float(np.abs(expected).max()))
        error = float(np.abs(result.array - expected).max())
        assert result.array.shape == expected.shape
        assert error <= PASS * floor, f"{output} at {length}: error {error:.3e}, floor {floor:.3e}"


def vocabulary(bundle: LoadedBundle) -> int:
    limits = [entry.limit for entry in bundle.program.inputs if entry.source == "argument"]
    return limits[0] or 0
