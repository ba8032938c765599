"""Whether rounding grows along a sequence: distances from float64 in every tenth of 100,000 tokens.

The library computes in blocks with its own cache, in float64 and in float32; the bundle in one run. Each of the three
is kept in the scratch folder: who was stopped goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.inputs import token_input
from tools.hybrids.agree import distance
from tools.hybrids.models import BLOCK, MODELS, make

__all__ = ["drift"]

PARTS, PIECE = 10, 1000


def drift(name: str, scratch: Path, tokens: int) -> list[dict[str, Any]]:
    """A row for every tenth of so many tokens: distances from float64 by the largest magnitude."""
    import torch

    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle
    from twoheads.runtime import load

    torch.set_grad_enabled(False)
    shape = MODELS[name]
    model = make(shape, shape.drift)
    path = scratch / f"{name}-drift.bundle"
    if not path.exists():
        write_bundle(compile_model(model, block_size=BLOCK), path, generation=False)
    ids = token_input(tokens, shape.drift["vocab_size"])

    def exactly() -> Any:
        model.set_experts_implementation("eager")  # the faster one has no float64
        return _in_pieces(model.double(), ids)

    kept = scratch / f"{name}-drift-{tokens}"
    ours = _kept(kept, "ours", lambda: load(path).run(ids, output="hidden").array)
    library = _kept(kept, "library", lambda: _in_pieces(model, ids))
    exact = _kept(kept, "exact", exactly)
    edges = [tokens * part // PARTS for part in range(PARTS + 1)]
    return [
        {
            "from": start,
            "to": stop,
            "ours": distance(ours[start:stop], exact[start:stop]),
            "library": distance(library[start:stop], exact[start:stop]),
        }
        for start, stop in pairwise(edges)
    ]


def _kept(folder: Path, what: str, compute: Callable[[], Any]) -> Any:
    """What was computed, from its file if there is one."""
    path = folder / f"{what}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, compute())
        unfinished.rename(path)
    return np.load(path)


def _in_pieces(model: Any, ids: Any) -> Any:
    """The library's hidden states ``[tokens, width]``, computed a piece at a time with its cache."""
    import torch
    from transformers import DynamicCache

    cache, made = DynamicCache(config=model.config), []
    for start in range(0, len(ids), PIECE):
        piece = torch.from_numpy(ids[start : start + PIECE])[None]
        made.append(model.base_model(input_ids=piece, past_key_values=cache, use_cache=True)[0][0].numpy())
    return np.concatenate(made)
