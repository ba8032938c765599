"""How the tests compare a bundle with the model it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tools.zoo.torch_heads import TASKS
from twoheads.compiler import CompiledModel, compile_model
from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.export import write_bundle
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.lengths import input_axes
from twoheads.runtime import LoadedBundle, load

PASS = 4.0
"""A bundle passes at this many times the noise floor."""

SMALLEST = 2e-7
"""The noise floor is never below this share of the largest magnitude."""


def zoo_model(name: str, folder: Path) -> Any:
    """One of the zoo's transformers models with a head, with two sequences or of images, always the same."""
    torch.manual_seed(0)
    return next(entry for entry in TASKS if entry.name == name).make(folder)


def bundle_of(model: nn.Module | Path, folder: Path, **options: Any) -> LoadedBundle:
    compiled: CompiledModel = compile_model(model, **options)
    return load(write_bundle(compiled, folder / "bundle", generation=False))


def assert_agrees(bundle: LoadedBundle, source: LoadedSource, length: int, seed: int = 0) -> None:
    """Hidden states, logits and call counts of one random input against two evaluations of the original."""
    given = random_inputs(bundle, length, seed)
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    fused = TorchOriginal(source).hidden_and_logits(tensors, None, "fused")
    plain = TorchOriginal(source).hidden_and_logits(tensors, None, "plain")
    spread = 0.0  # of the hidden states; a pooled head has too few numbers to show its own
    for output, first, second in zip(("hidden", "logits"), fused, plain, strict=True):
        if first is None or second is None:
            continue
        result = bundle.run(given, output=output)
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        assert result.array is not None
        expected = first.detach().numpy()
        got = result.array.reshape(1, -1) if bundle.program.pooled_logits and output == "logits" else result.array
        magnitude = float(np.abs(expected).max())
        spread = max(float((first - second).abs().max()) / magnitude, SMALLEST, spread)
        error = float(np.abs(got - expected).max())
        assert got.shape == expected.shape
        assert error <= PASS * spread * magnitude, f"{output} at {length}: error {error:.3e}, floor {spread:.3e}"


def random_inputs(bundle: LoadedBundle, length: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """An array for every argument: ``length`` tokens along ``n``, another number along every other axis."""
    generator = np.random.default_rng(seed + length)
    lengths = {axis: length if axis == "n" else 1 + 37 * length % 71 for axis in input_axes(bundle.program)}
    made: dict[str, np.ndarray[Any, Any]] = {}
    for entry in bundle.program.inputs:
        value = entry.value
        if entry.source != "argument":
            continue
        shape = value.block_shape(0 if value.axis is None else axis_length(value.axis, lengths))
        if np.dtype(value.dtype).kind == "f":
            made[value.name] = generator.standard_normal(shape).astype(value.dtype)
        else:
            made[value.name] = generator.integers(0, entry.limit, shape)
    return made
