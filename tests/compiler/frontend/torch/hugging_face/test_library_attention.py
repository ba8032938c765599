"""Our functions in the place of the library's eager attention: nothing else changes, and nothing is left behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, and_masks, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama

from tests.compiler.small_models import SIZES, bert, captured, gemma3, llama
from twoheads.compiler.compile_model import compile_model
from twoheads.compiler.frontend.torch.hugging_face import refused_layers
from twoheads.compiler.frontend.torch.hugging_face.hooks import hooked, mask_from_closure
from twoheads.compiler.frontend.torch.hugging_face.library_attention import in_place_of_eager, require_understood
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Full, Window, parse_mask

LLAMA: Any = modeling_llama
BERT: Any = modeling_bert


def test_a_causal_mask_of_layers_that_say_they_are_not_causal_is_refused() -> None:
    """The library leaves such a mask out for its fused attention, which then sees all tokens: PaliGemma, text alone."""
    model: Any = llama()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    ids = torch.arange(7)[None]
    with torch.no_grad():
        fused = model(ids).logits
        model.set_attn_implementation("eager")
        assert not torch.allclose(fused, model(ids).logits, atol=1e-2)
    asked_for_eager = next(iter(captured(model).graph.attentions))
    assert str(asked_for_eager.mask) == "causal"
    model.set_attn_implementation("sdpa")
    with pytest.raises(CompileError, match="says that it is not causal"):
        captured(model)


def test_layers_that_are_causal_without_their_mask_are_captured_with_it() -> None:
    """Moonshine's decoder tells the attention function that it is not causal where it is given a mask."""
    model: Any = llama()
    for layer in model.model.layers:
        layer.self_attn.forward = partial(layer.self_attn.forward, is_causal=False)
    assert {str(attention.mask) for attention in captured(model).graph.attentions} == {"causal"}


def test_a_model_under_our_functions_still_says_that_it_is_eager_and_is_as_before_afterwards() -> None:
    model: Any = llama()
    before = model.config._attn_implementation
    with hooked(model):
        assert model.config._attn_implementation == "eager"
        assert ALL_ATTENTION_FUNCTIONS["eager"] is not None
        made: Any = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
        assert made.func.__module__.startswith("twoheads")
    assert model.config._attn_implementation == before == "sdpa"
    assert "eager" not in ALL_ATTENTION_FUNCTIONS
    assert ALL_MASK_ATTENTION_FUNCTIONS["eager"].__module__ == "transformers.masking_utils"


def test_it_ends_after_an_error_too() -> None:
    model: Any = llama()
    with pytest.raises(ZeroDivisionError), in_place_of_eager(model, lambda *_: None):
        raise ZeroDivisionError
    assert "eager" not in ALL_ATTENTION_FUNCTIONS


@pytest.mark.parametrize("make", [llama, gemma3, bert])
def test_hooked_models_compute_what_they_compute_otherwise(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    ids = torch.arange(30)[None] % 40
    want = model(ids)[0]
    with hooked(model):
        got = model(ids)[0]
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("keywords", [{"block_indices": torch.zeros(1)}, {"indices": 3}, {"dropout": 0.1}])
def test_a_keyword_that_is_not_understood_is_refused(keywords: dict[str, Any]) -> None:
    module = torch.nn.Linear(1, 1)
    require_understood(module, {"dropout": 0.0, "block_indices": None, "sliding_window": 7})
    with pytest.raises(CompileError, match=f"Linear: gives its attention '{next(iter(keywords))}'"):
        require_understood(module, keywords)


def test_a_sparse_model_is_refused_by_its_keyword_where_its_name_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask of chosen blocks was skipped under every name but the library's own, and the bundle said causal."""
    monkeypatch.setattr(refused_layers, "_REFUSED", {})
    sizes: dict[str, Any] = {**SIZES, "num_hidden_layers": 1}
    config = hf.MiniMaxM3VLTextConfig(
        **sizes, num_key_value_heads=2, head_dim=8, rotary_dim=4, num_local_experts=2,
        num_experts_per_tok=1, shared_intermediate_size=24, dense_intermediate_size=24, index_n_heads=2,
        index_head_dim=8, index_block_size=16, index_topk_blocks=2, bos_token_id=0, eos_token_id=1,
        layer_types=["minimax_m3_sparse"],
    )  # fmt: skip
    with pytest.raises(CompileError):
        compile_model(hf.MiniMaxM3VLForCausalLM(config).eval(), block_size=16)


def _own(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query - key).abs() <= 3


def test_a_mask_function_of_the_model_s_own_is_read_by_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    made = LLAMA.create_causal_mask
    monkeypatch.setattr(LLAMA, "create_causal_mask", lambda **given: made(**given, and_mask_function=_own))
    with pytest.raises(CompileError, match="not a function of positions"):
        mask_from_closure(and_masks(causal_mask_function, _own))
    nodes = captured(llama()).graph.attentions
    assert {node.mask for node in nodes} <= {Causal() & Window(3, 3), parse_mask("causal & window(3, 3)"), Window(3, 0)}


def test_a_mask_function_of_the_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = LLAMA.create_causal_mask

    def with_input(**given: Any) -> Any:
        shown = given["inputs_embeds"].sum(-1) > 0
        return made(**given, and_mask_function=lambda batch, _head, _query, key: shown[batch, key])

    monkeypatch.setattr(LLAMA, "create_causal_mask", with_input)
    with pytest.raises(CompileError, match="depends on the input"):
        captured(llama())


def test_a_model_s_own_mask_of_ones_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = BERT.create_bidirectional_mask

    def of_ones(**given: Any) -> Any:
        return made(**{**given, "attention_mask": torch.ones(given["inputs_embeds"].shape[:2])})

    monkeypatch.setattr(BERT, "create_bidirectional_mask", of_ones)
    assert {node.mask for node in captured(bert()).graph.attentions} == {Full()}
