"""Minus infinity becomes a score that 8 bits can hold, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import numpy_helper

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.accelerators.prepare_engine import prepare_engine
from twoheads.export.accelerators.rewrites.hidden_scores import raise_hidden_scores, raise_masks
from twoheads.export.accelerators.target import load_target
from twoheads.export.emit.stock_attention import stock_model
from twoheads.graphs.program.program import AttentionEngine, StockEngine
from twoheads.runtime.bundle.reader import read_bundle


def causal_engine(tmp_path):
    """The stock engine with a triangle inside, which is minus infinity."""
    bundle = read_bundle(write_tiny(tmp_path / "b", Tiny()))
    (tile,) = (engine for engine in bundle.program.engines if isinstance(engine, AttentionEngine))
    names = ("name", "q_num_heads", "kv_num_heads", "head_dim", "v_head_dim", "block_size", "key_tile", "scale")
    facts = {name: getattr(tile, name) for name in names}
    return stock_model(StockEngine(**facts, code_size=0, mask_heads=1, dtype="float32"), "causal")


def mask(model):
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "mask")


def test_the_triangle_of_an_engine_is_raised(tmp_path):
    model = causal_engine(tmp_path)
    raised = raise_hidden_scores(model, -20.0)
    np.testing.assert_array_equal(mask(raised), np.where(np.isneginf(mask(model)), -20, 0))
    assert raise_hidden_scores(raised, -20.0) is raised
    others = [{t.name: t for t in m.graph.initializer if t.name != "mask"} for m in (model, raised)]
    assert others[0] == others[1]


def test_only_int8_of_a_target_that_needs_it_is_raised(tmp_path):
    model, target = causal_engine(tmp_path), load_target("ethos-u")

    def lowest(precision, target):
        prepared = prepare_engine(model, target, precision, "e").accelerator
        assert prepared is not None
        return mask(prepared).min()

    assert lowest("int8", target) == -20
    assert lowest("int8", replace(target, hidden_score=None)) == -np.inf
    assert lowest("fp32", target) == -np.inf


def test_inputs_that_hide_are_raised_and_whole_numbers_left_alone():
    given = {"mask": np.array([0, -np.inf, -3], np.float32), "tokens": np.array([1, 2])}
    raised = raise_masks(given, -20.0)
    np.testing.assert_array_equal(raised["mask"], np.array([0, -20, -3], np.float32))
    assert raised["mask"].dtype == np.float32
    np.testing.assert_array_equal(raised["tokens"], given["tokens"])
