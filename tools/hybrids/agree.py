"""How far a bundle and the library's own float32 are from the library's float64, at lengths around a block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.inputs import token_input
from tools.hybrids.models import MODELS, folder_of

__all__ = ["agreement", "distance"]

Array = npt.NDArray[Any]


def agreement(name: str, scratch: Path, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row for every length: distances from float64 by the largest magnitude, ours and the library's."""
    import torch
    import transformers

    from twoheads.runtime import load

    torch.set_grad_enabled(False)
    library: Any = transformers.AutoModelForCausalLM
    source = folder_of(scratch, name)
    bundle = load(scratch / f"{name}.bundle")
    float32, float64 = (library.from_pretrained(source, dtype=dtype).eval() for dtype in (torch.float32, torch.float64))
    float64.set_experts_implementation("eager")  # the faster one has no float64
    rows: list[dict[str, Any]] = []
    for length in lengths:
        ids = token_input(length, MODELS[name].entries()["vocab_size"])

        def hidden(model: Any, ids: Array = ids) -> Array:
            states: Array = model.base_model(input_ids=torch.from_numpy(ids)[None], use_cache=False)[0][0].numpy()
            return states

        run, exact = bundle.run(ids, output="hidden"), hidden(float64)
        assert run.array is not None
        rows.append(
            {
                "tokens": length,
                "ours": distance(run.array, exact),
                "library": distance(hidden(float32), exact),
                "calls": run.report.engine_calls,
                "formula": run.report.formula_calls,
            }
        )
    return rows


def distance(found: Array, exact: Array) -> float:
    """The largest difference by the largest magnitude."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())
