"""RWKV and xLSTM: exact where exponents are far beyond floats, and where the library rescales its own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.tiers import with_long
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.layers import exponential_layers
from twoheads.compiler.frontend.torch.hugging_face.refused_layers import refuse_known
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.graphs.errors import CompileError

TOKENS, WIDTH = 40, 6


@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
def test_means_of_rwkv_are_those_of_the_library_for_any_exponents(spread: float) -> None:
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    torch.manual_seed(0)
    key, value = spread * torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS, WIDTH)
    key[:, 0] -= 3 * spread  # the first token is far below what an empty state would be
    decay, bonus = torch.linspace(-5, 3, WIDTH), torch.randn(WIDTH)
    found = exponential_layers._wkv(-torch.exp(decay), bonus, key, value)  # pyright: ignore[reportPrivateUsage]
    expected, _ = rwkv_linear_attention_cpu(decay, bonus, key, value)
    assert torch.isfinite(found).all()
    # an exponent of 1000 has an error of 3e-5 by itself
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 + 2e-7 * spread)


@pytest.mark.parametrize("spread", [1.0, 15.0, 60.0])
def test_memories_of_xlstm_are_those_of_the_library_for_any_gates(spread: float) -> None:
    from transformers.models.xlstm.modeling_xlstm import xLSTMBackend

    torch.manual_seed(0)
    backend: Any = xLSTMBackend(hf.xLSTMConfig(hidden_size=16, num_heads=2, chunk_size=16))
    query, key, value = (torch.randn(1, 2, TOKENS, WIDTH) for _ in range(3))
    gates = {"igate": spread * torch.randn(1, 2, TOKENS), "fgate": spread * torch.randn(1, 2, TOKENS)}
    expected, _ = backend(query=query, key=key, value=value, **gates)
    found, _ = exponential_layers._mlstm(backend, query, key, value, **gates)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("form", with_long(("fresh", "ran", "folder"), ("ran", "folder")))
def test_rescaled_layers_of_rwkv_are_rescaled_once(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=3, rescale_every=1)
    model = hf.RwkvModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    if form == "folder":
        model.save_pretrained(tmp_path / "model")
    ids = torch.arange(9)[None]
    if form == "ran":
        model(ids)
    source = load_source(tmp_path / "model" if form == "folder" else model, deferred=form == "folder")
    prove_capture(source, capture(source))
    with torch.no_grad():
        assert torch.equal(source.module(ids)[0], model(ids)[0])


def test_an_earlier_state_is_refused_and_not_dropped() -> None:
    model = hf.RwkvModel(hf.RwkvConfig(vocab_size=61, hidden_size=8, num_hidden_layers=2))
    layer: Any = model.blocks[0].attention
    with pytest.raises(CompileError, match="'state'"):
        exponential_layers.EXPONENTIAL_LAYERS["RwkvSelfAttention"]["forward"](layer, torch.zeros(1, 2, 8), state=[0])


def test_kernels_of_the_package_are_refused() -> None:
    layer = type("mLSTMLayer", (torch.nn.Module,), {})()
    with pytest.raises(CompileError, match="package xlstm"):
        refuse_known(layer)
