"""Weights that are no numbers are refused by name, unless they are asked for."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiers import with_long
from twoheads.compiler.compile_model import compile_model
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor
from twoheads.compiler.passes.check_weights import check_weights
from twoheads.graphs.errors import CompileError

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("number", with_long((np.nan, np.inf, -np.inf), [-np.inf]))
def test_a_model_with_such_a_weight(tiny_llama: Path, tmp_path: Path, number: float) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME][3, 5] = number
    tensors[NAME][4, 0] = number
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompileError, match=rf"weight {NAME}: holds 2 numbers of 2048 .* first at \[3, 5\]"):
        compile_model(folder, block_size=16)
    compiled = compile_model(folder, block_size=16, allow_non_finite=True)
    assert not torch.isfinite(compiled.weights[NAME]).all()


def test_every_kind_of_array() -> None:
    fine = {"whole": np.ones(3, np.int64), "half": torch.full((9,), 6e4, dtype=torch.float16), "empty": np.ones(0)}
    large = {"large": np.full(9, 3e38, np.float32), "minus": torch.full((9,), -3e38)}
    check_weights(fine | large, [*fine, *large, "no weight"])
    for odd in (np.array([1, np.inf, -np.inf], np.float16), torch.tensor([1, np.nan, 0], dtype=torch.bfloat16)):
        check_weights({"odd": odd}, [])
        with pytest.raises(CompileError, match=r"weight odd: .* first at \[1\]"):
            check_weights({"odd": odd}, ["odd"])


def test_one_weight_is_in_memory_at_a_time() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def read() -> torch.Tensor:
        nonlocal most
        made = torch.ones(8)
        alive.append(weakref.ref(made))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    stored = {name: StoredTensor((8,), torch.float32, read, name) for name in "abc"}
    check_weights(stored, stored)
    assert len(alive) == 3
    assert most == 1
