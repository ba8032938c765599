"""The original with a bundle's rounded weights, which stay where they are stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tools.large_models.make import Shape, make_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor, read_tensor
from twoheads.export.verification.streamed.stored_weights import with_stored_bundle_weights
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.bundle_format import WeightEntry
from twoheads.runtime import LoadedBundle

LARGE, SMALL = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def bundle_of_half(*names: str) -> LoadedBundle:
    entries = {name: WeightEntry(0, "float16", ()) for name in names}
    manifest = SimpleNamespace(quantised={}, weights=entries)
    return cast("LoadedBundle", SimpleNamespace(manifest=manifest, open_weights=lambda: None))


def test_weights_of_16_bits_are_the_original_s_own_rounded(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", Shape(128, 640, 1, 4, 2, 50))
    # A bfloat16 number of these sizes is a float16 number, too: others are needed.
    original = load_source(folder, deferred=True)
    module: Any = original.module
    tensors: dict[str, Any] = module.state_dict(keep_vars=True)
    before = {name: 1e-6 * read_tensor(tensors[name]).detach().clone() for name in (LARGE, SMALL)}
    stored = StoredTensor(before[LARGE].shape, torch.float32, lambda: before[LARGE])
    module.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(stored, requires_grad=False)
    tensors[SMALL].data.copy_(before[SMALL])
    rounded = with_stored_bundle_weights(original, bundle_of_half(LARGE, SMALL))
    after: dict[str, Any] = rounded.module.state_dict(keep_vars=True)
    for name in (LARGE, SMALL):
        assert torch.equal(read_tensor(after[name]), before[name].half().float())
        assert not torch.equal(read_tensor(after[name]), before[name])
    assert isinstance(after[LARGE], StoredTensor)
    with pytest.raises(InputError, match="no weight of that name"):
        with_stored_bundle_weights(original, bundle_of_half("model.other"))
