"""Models whose indexer chooses keys: exact up to the number that it chooses, refused beyond by every door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compiler.small_models import deepseek_sparse
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import InputError
from twoheads.runtime import load

KEYS = 19


def test_an_indexer_ends_where_it_begins_to_choose(tmp_path: Path) -> None:
    model = deepseek_sparse(KEYS)
    path = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle")
    bundle, tokens = load(path, threads=1), np.arange(200) % 60
    assert verify(path, model, length=KEYS).passed
    short = bundle.run(tokens[:KEYS], output="hidden").array
    assert short is not None
    with torch.no_grad():
        own = model.model(torch.from_numpy(tokens[:KEYS])[None]).last_hidden_state[0].numpy()
    assert np.abs(short - own).max() < 1e-5 * np.abs(own).max()
    for length in (KEYS + 1, 53, 200):
        with pytest.raises(InputError, match=f"the range in which it chooses all keys ends at {KEYS}"):
            bundle.run(tokens[:length])
        with pytest.raises(InputError, match=f"ends at {KEYS}"):
            bundle.schedule(length, "hidden")
    with pytest.raises(InputError, match=f"the model takes {KEYS} "):
        bundle.generate(tokens[:10].tolist(), max_new_tokens=20, ignore_eos=True)
