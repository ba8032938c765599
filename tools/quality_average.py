"""Sampled attention on its own: the measured error against the run's own estimate, and Theorem 4.1's conditions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tools.attention_only import AttentionOnly, features
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.export import write_bundle
from twoheads.graphs.masks.policy import Policy
from twoheads.runtime import load
from twoheads.runtime.reports.sampling import AverageReport

__all__ = ["captured_heads", "gentle_heads", "measure_attention"]

Heads = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""Queries ``[q_heads, n, head_dim]``, keys and values ``[kv_heads, n, head_dim]``."""


def gentle_heads(length: int, *, heads: int, width: int, spread: float) -> Heads:
    """Random heads with scores near 0 and values near each other, the more so the smaller ``spread``."""
    rng = np.random.default_rng(length)
    q, k, v = (spread * rng.standard_normal((heads, length, width)) for _ in range(3))
    return q, k, v + 1


def captured_heads(model: Path, tokens: npt.NDArray[np.int64], layers: tuple[int, ...]) -> dict[int, Heads]:
    """What the attentions of a decoder's ``layers`` are given for ``tokens``."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    found: dict[int, Heads] = {}

    def record(module: Any, query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> Any:
        if module.layer_idx in layers:
            q, k, v = (part[0].float().numpy().copy() for part in (query, key, value))
            found[module.layer_idx] = (q, k, v)
        return sdpa_attention_forward(module, query, key, value, *arguments, **options)

    AttentionInterface.register("twoheads_record", record)
    AttentionMaskInterface.register("twoheads_record", sdpa_mask)
    loaded = cast("Any", load_source(model).module)
    loaded.set_attn_implementation("twoheads_record")
    with torch.no_grad():
        loaded.model(input_ids=torch.from_numpy(tokens)[None], use_cache=False)
    return found


def measure_attention(
    given: Heads, policies: Mapping[str, Policy], mask: str, *, block_size: int = 256, key_tile: int = 256
) -> dict[str, Any]:
    """The error of each policy on these heads, its estimate, and the theorem's numbers."""
    q, k, v = given
    model = AttentionOnly(len(q), len(k), q.shape[-1], mask)
    x = features(q, k, v)
    exact: npt.NDArray[np.float32] | None = None
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, policy in {"full": Policy(), **policies}.items():
            compiled = compile_model(
                model,
                example_inputs=model.example(),
                block_size=block_size,
                key_tile=key_tile,
                attention=str(policy),
            )
            result = load(write_bundle(compiled, Path(folder) / f"b{len(results)}{policy.exact}")).run(x)
            if result.array is None:
                raise RuntimeError("a run without a sink returned nothing")
            if exact is None:
                exact = result.array
                continue
            error = float(np.sqrt(np.square(result.array - exact).mean() / np.square(exact).mean()))
            results[name] = {
                "calls": result.report.engine_calls,
                "error": error,
                **_estimate(result.report.average),
            }
    return results


def _estimate(report: AverageReport | None) -> dict[str, Any]:
    if report is None or not report.stages:
        return {}
    stage = report.stages[0]
    return {
        "estimate": stage.relative_error,
        "c": stage.c,
        "d": stage.d,
        "required_keys": stage.required_keys,
        "sampled_keys": stage.sampled_keys,
        "holds": stage.holds,
    }
