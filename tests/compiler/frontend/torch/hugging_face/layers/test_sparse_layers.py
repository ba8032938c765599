"""Sparse attention: what is full attention for short inputs is captured as such, and ends where it is no longer."""

import numpy as np
import pytest
import torch
import transformers as hf

from tests.compiler.small_models import deepseek_sparse
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.layers.sparse_layers import dense_length
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_program import example_inputs
from twoheads.compiler.original.prove_capture import prove_capture

TOPK = 19


def _big_bird():
    torch.manual_seed(3)
    config = hf.BigBirdConfig(
        vocab_size=67, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=128, block_size=8, num_random_blocks=2,
    )  # fmt: skip
    return hf.BigBirdModel(config).eval()


def test_an_indexer_that_takes_all_keys_is_full_attention_up_to_its_number():
    source = load_source(deepseek_sparse(TOPK))
    captured = capture(source)
    assert [str(node.mask) for node in captured.graph.attentions] == ["causal"]
    limits = [(limit.length, limit.reason) for limit in captured.graph.limits]
    assert limits == [(TOPK, "the range in which it chooses all keys")]
    prove_capture(source, captured)


def test_beyond_that_number_the_graph_is_not_the_model():
    module = deepseek_sparse(TOPK)
    captured = capture(load_source(module))
    for length, same in ((TOPK, True), (TOPK + 9, False)):
        given = example_inputs(captured.program.inputs, {"n": length}, 1)
        found = captured.program.evaluate([captured.graph.hidden], given)[captured.graph.hidden]
        with torch.no_grad():
            own = module.model(torch.from_numpy(given["input_ids"])).last_hidden_state.numpy()
        assert (np.abs(found - own).max() < 1e-4) == same


def test_random_blocks_are_kept_out_and_the_model_is_left_as_it_was():
    module = _big_bird()
    source = load_source(module)
    captured = capture(source)
    assert module.attention_type == "block_sparse"
    assert [limit.length for limit in captured.graph.limits] == [(5 + 2 * 2) * 8]
    prove_capture(source, captured)
    assert all(getattr(part, "attention_type", "block_sparse") == "block_sparse" for part in module.modules())


@pytest.mark.parametrize("kind", ["BigBird", "BERT"])
def test_full_attention_has_no_end(kind):
    big_bird = hf.BigBirdConfig(attention_type="original_full", num_hidden_layers=1, hidden_size=24, vocab_size=67)
    bert = hf.BertConfig(num_hidden_layers=1, hidden_size=24, vocab_size=67)
    assert dense_length(hf.BigBirdModel(big_bird) if kind == "BigBird" else hf.BertModel(bert)) is None
