"""What is replaced or refused for single architectures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.architectures import replaced
from twoheads.compiler.frontend.torch.load_source import LoadedSource, load_source
from twoheads.compiler.ir.source_program import example_inputs
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.graphs.errors import CompileError

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
VISION = {key: size for key, size in SIZES.items() if key != "vocab_size"}
CONTEXT = 40


def dynamic_rope() -> LoadedSource:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    torch.manual_seed(0)
    return load_source(hf.LlamaModel(hf.LlamaConfig(**SIZES, max_position_embeddings=CONTEXT, rope_parameters=rope)))


def long_rope() -> LoadedSource:
    factors = {"long_factor": [4.0, 3.0, 2.0, 1.5], "short_factor": [1.0, 1.1, 1.2, 1.3]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": CONTEXT, **factors}
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = hf.Phi3Config(**SIZES, **tokens, max_position_embeddings=2 * CONTEXT, rope_parameters=rope)
    return load_source(hf.Phi3Model(config))


@pytest.mark.parametrize("source", [dynamic_rope(), long_rope()], ids=["dynamic", "longrope"])
def test_rope_that_depends_on_the_length_reads_it(source: LoadedSource) -> None:
    captured = capture(source)
    assert [entry.source for entry in captured.graph.inputs if entry.source == "length"] == ["length"]
    for length in (CONTEXT - 7, CONTEXT, CONTEXT + 1, 2 * CONTEXT):
        given = example_inputs(captured.program.inputs, {"n": length}, seed=length)
        got = captured.program.evaluate([captured.graph.hidden], given)[captured.graph.hidden]
        expected, _ = TorchOriginal(source).hidden_and_logits(torch.from_numpy(given["input_ids"]))
        np.testing.assert_allclose(got[0], expected.numpy(), atol=2e-5)


def test_a_longer_input_does_not_change_what_the_original_says_of_a_shorter_one() -> None:
    source = dynamic_rope()
    ids = torch.arange(3 * CONTEXT)[None] % 61
    before, _ = TorchOriginal(source).hidden_and_logits(ids[:, : CONTEXT + 5])
    TorchOriginal(source).hidden_and_logits(ids)
    after, _ = TorchOriginal(source).hidden_and_logits(ids[:, : CONTEXT + 5])
    assert torch.equal(before, after)


def test_replacements_end() -> None:
    model: Any = hf.LongformerModel(hf.LongformerConfig(**SIZES, attention_window=8))
    with replaced(model):
        assert "forward" in vars(model)
    assert not any("forward" in vars(part) for part in model.modules())


def test_longformer_attends_within_its_window() -> None:
    model = hf.LongformerModel(hf.LongformerConfig(**SIZES, attention_window=8, max_position_embeddings=90))
    assert [str(node.mask) for node in capture(load_source(model)).graph.attentions] == ["window(4, 4)"]


def minimax_m3() -> Any:
    """The second layer chooses two blocks of 16 keys for every query."""
    sizes: dict[str, Any] = {**SIZES, "num_hidden_layers": 2}
    return hf.MiniMaxM3VLTextConfig(
        **sizes, num_key_value_heads=2, head_dim=8, rotary_dim=4, num_local_experts=4,
        num_experts_per_tok=2, shared_intermediate_size=48, dense_intermediate_size=48, index_n_heads=2,
        index_head_dim=8, index_block_size=16, index_topk_blocks=2, bos_token_id=0, eos_token_id=1,
        layer_types=["full_attention", "minimax_m3_sparse"],
    )  # fmt: skip


REFUSED: dict[str, tuple[Any, str]] = {
    "Longformer with global attention": (
        lambda: hf.LongformerForSequenceClassification(hf.LongformerConfig(**SIZES, attention_window=8)),
        "global attention",
    ),
    "a sparse indexer": (
        lambda: hf.MiniMaxM3VLForCausalLM(minimax_m3()),
        r"layers\.1\.self_attn\.indexer .*by their content which keys",
    ),
    "a masked autoencoder": (
        lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VISION, image_size=32, patch_size=8)),
        "random numbers",
    ),
    "CPM-Ant": (
        lambda: hf.CpmAntForCausalLM(hf.CpmAntConfig(**SIZES, dim_head=8)),
        "hides token 0 wherever it stands",
    ),
    "MusicGen's decoder": (
        lambda: hf.MusicgenForCausalLM(
            hf.MusicgenDecoderConfig(
                vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=48
            )
        ),
        "a token is several inputs at once",
    ),
    "FNet": (
        lambda: hf.FNetModel(hf.FNetConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1)),
        "Fourier transform",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_tile_can_compute_is_refused_by_layer_with_a_remedy(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CompileError, match=message) as caught:
        capture(load_source(make()))
    assert "fix: " in str(caught.value)
