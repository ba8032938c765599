"""Models that tell padding by its token are given a mask of ones."""

import pytest
import torch
import transformers as hf

from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.layers.padding_masks import ones_for
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture


@pytest.mark.parametrize("causal", [False, True])
def test_xlm_hides_no_token_and_keeps_its_triangle(causal):
    torch.manual_seed(5)
    config = hf.XLMConfig(vocab_size=67, emb_dim=32, n_layers=1, n_heads=2, max_position_embeddings=64, causal=causal)
    source = load_source(hf.XLMModel(config).eval())
    captured = capture(source)
    assert [str(node.mask) for node in captured.graph.attentions] == ["causal" if causal else "full"]
    limit = next(entry.limit for entry in captured.graph.inputs if entry.value.name == "input_ids")
    assert limit == 67
    prove_capture(source, captured)  # its tokens hold the padding token, which would hide itself


def test_a_model_that_guesses_nothing_is_given_nothing():
    module = hf.BertModel(hf.BertConfig(num_hidden_layers=1, hidden_size=24))
    assert ones_for(module, {"input_ids": torch.zeros((1, 3), dtype=torch.int64)}) == {}
