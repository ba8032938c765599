"""The stock engines: nothing but softmax attention, and what the synthetic key makes of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest

from twoheads.export.emit.stock_attention import stock_model
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import StockEngine
from twoheads.runtime.stages.stock.attention import TRUSTED, stock_doubtful, stock_partial

ENGINE = StockEngine("attention_0", 4, 2, 16, 12, 16, 32, 0.25, 0, 1, "float32")
SOFTMAX_ATTENTION = {"Reshape", "Mul", "Transpose", "MatMul", "Softmax"}


def _call(variant: str, score: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """An engine's result for random queries and keys, with the exact out and lse in float64."""
    rng = np.random.default_rng(seed)
    keys = ENGINE.keys(variant) - 1
    q, k = rng.standard_normal((1, 4, 16, 17)) * 3, rng.standard_normal((1, 2, keys + 1, 17))
    v = rng.standard_normal((1, 2, keys + 1, 14))
    q[..., 16], k[..., 16], k[:, :, 0] = score / ENGINE.scale, 0, np.eye(17)[16]
    v[..., 12:], v[:, :, 0] = [1, 0], np.eye(14)[13]
    arrays = {name: array.astype(np.float32) for name, array in (("q", q), ("k", k), ("v", v))}
    session = onnxruntime.InferenceSession(stock_model(ENGINE, variant).SerializeToString())
    result = np.asarray(session.run(None, arrays)[0])
    q, k, v = (array.astype(np.float64) for array in arrays.values())
    scores = q[..., :16] @ k.repeat(2, 1)[:, :, 1:, :16].swapaxes(2, 3) * ENGINE.scale
    if variant == "causal":
        scores = np.where(np.tri(16, keys, dtype=bool), scores, -np.inf)
    lse = np.log(np.exp(scores).sum(-1))
    return result, np.exp(scores - lse[..., None]) @ v.repeat(2, 1)[:, :, 1:, :12], lse


@pytest.mark.parametrize("variant", StockEngine.VARIANTS)
def test_engines_are_softmax_attention_and_nothing_else(variant: str) -> None:
    model = stock_model(ENGINE, variant)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert operators == SOFTMAX_ATTENTION | (set() if variant == "full" else {"Add"})
    names = [value.name for value in model.graph.input]
    assert names == (["q", "k", "v", "mask"] if variant == "masked" else ["q", "k", "v"])
    assert [value.name for value in model.graph.output] == ["out"]


@pytest.mark.parametrize("variant", ["full", "causal"])
@pytest.mark.parametrize("away", [-60, -30, -10, 0, 10, 30, 60])
def test_one_call_gives_out_and_lse_however_far_the_synthetic_score(variant: str, away: float) -> None:
    middle = float(np.median(_call(variant, 0)[2]))
    result, out, lse = _call(variant, middle + away)
    found_out, found_lse = stock_partial(result, np.full(lse.shape, middle + away, np.float32))
    assert not stock_doubtful(result, np.full(lse.shape, -np.inf), TRUSTED["float32"]).any()
    assert np.abs(found_lse - lse).max() < 2e-5
    assert np.abs(found_out - out).max() < 2e-5


@pytest.mark.parametrize("away", [-120, 120])
def test_scores_too_far_off_are_noticed(away: float) -> None:
    result, _, lse = _call("full", away)
    assert stock_doubtful(result, np.full(lse.shape, -np.inf), TRUSTED["float32"]).all()


def test_keys_that_do_not_matter_beside_earlier_ones_are_no_reason_to_repeat() -> None:
    result, _, lse = _call("full", 120)
    assert not stock_doubtful(result, np.full(lse.shape, 120.0), TRUSTED["float32"]).any()


def test_there_is_no_other_variant() -> None:
    with pytest.raises(InternalError, match="no variant 'merge'"):
        stock_model(ENGINE, "merge")
