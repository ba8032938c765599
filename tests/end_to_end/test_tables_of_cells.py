"""A reader of tables is told column, row and number within the cell, and is then the library's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TapasConfig, TapasForMaskedLM

from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.runtime import load

TOKENS = 37


@torch.no_grad()
def test_the_library_counts_what_the_bundle_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TapasConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        type_vocab_sizes=[3, 8, 8, 2, 8, 8, 4], max_position_embeddings=64,
    )  # fmt: skip
    model: Any = TapasForMaskedLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    bundle = write_bundle(compile_model(model, block_size=16), tmp_path / "bundle", generation=False)
    generator = np.random.default_rng(0)
    cells = np.sort(generator.integers(0, 12, TOKENS))
    types = np.zeros((1, TOKENS, 7), np.int64)
    types[0, :, 0], types[0, :, 1], types[0, :, 2] = 1, cells // 4, cells % 4
    ids = generator.integers(0, 40, (1, TOKENS))
    within = np.array([[int(np.sum(cells[:at] == cell)) for at, cell in enumerate(cells)]])
    own = model(input_ids=torch.from_numpy(ids), token_type_ids=torch.from_numpy(types)).logits[0].numpy()
    given = {"input_ids": ids, "token_type_ids": types, "position_ids": within}
    run = load(bundle).run(given, output="logits").array
    assert run is not None
    np.testing.assert_allclose(run, own, atol=4e-6 * float(np.abs(own).max()))
    assert verify(bundle, model, length=TOKENS).passed
