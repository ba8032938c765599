"""What a capture finds: attention nodes with their attributes, inputs, weights, positions; and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._dynamo.config as dynamo
import transformers as hf
from torch import Tensor, nn
from torch.fx import config

from tests.compiler.small_models import (
    EXAMPLES,
    SIZES,
    OneLayer,
    bert,
    captured,
    captured_llama,
    gemma3,
    gpt2,
    llama,
    opt,
)
from twoheads.compiler import attention
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.export_source import export_source
from twoheads.compiler.frontend.torch.hugging_face import refused_layers
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_graph import AttentionNode
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Causal, Full, Window, parse_mask


def attentions(module: nn.Module) -> list[AttentionNode]:
    return list(captured(module).graph.attentions)


def test_one_attention_node_a_layer_with_its_attributes() -> None:
    graph = captured_llama().graph
    nodes = list(graph.attentions)
    assert [node.layer for node in nodes] == [f"model.layers.{at}.self_attn" for at in range(3)]
    types = graph.types()
    assert types[nodes[0].query].shape == (1, 4, "n", 4)
    assert types[nodes[0].key].shape == (1, 2, "n", 4), "grouped heads must not be repeated"
    assert {(node.mask, node.scale, node.softcap, node.sinks) for node in nodes} == {(Causal(), 0.5, 0.0, None)}


def test_windows_follow_the_models_mask_not_its_keyword() -> None:
    masks = [node.mask for node in attentions(gemma3())]
    assert masks == [Window(5, -1) & Causal()] * 2 + [Causal()]


def test_bidirectional_models_have_no_mask() -> None:
    assert {node.mask for node in attentions(bert())} == {Full()}


@pytest.mark.parametrize("mask", ["full", "causal & window(3, 0)", "causal & (window(3, 0) | sinks(2))"])
def test_a_hand_written_module_says_its_attention(mask: str) -> None:
    sinks = torch.randn(2)

    class Sinks(OneLayer):
        def __init__(self) -> None:
            super().__init__(attend=self.sinking)
            self.sinks = nn.Parameter(sinks)

        def sinking(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, mask=mask, scale=0.3, softcap=5.0, sinks=self.sinks)

    (node,) = attentions(Sinks())
    assert (node.mask, node.scale, node.softcap, node.sinks) == (parse_mask(mask), 0.3, 5.0, "sinks")


def test_torchs_own_kernel_is_read_with_its_defaults() -> None:
    sdpa = torch.nn.functional.scaled_dot_product_attention
    (node,) = attentions(OneLayer(attend=lambda q, k, v: sdpa(q, k, v, is_causal=True)))
    assert (node.mask, node.scale) == (Causal(), 0.5)


def test_token_numbers_are_limited_by_the_embedding_also_through_a_view() -> None:
    for found in (captured_llama(), captured(gpt2())):
        entries = {entry.value.name: entry for entry in found.graph.inputs}
        assert (entries["input_ids"].source, entries["input_ids"].limit) == ("argument", 40)
        assert entries["positions"].source == "positions"


def test_weights_are_the_models_own_tensors() -> None:
    module = llama()
    weights = captured(module).program.weights
    assert weights["model.embed_tokens.weight"].data_ptr() == module.model.embed_tokens.weight.data_ptr()


def test_positions_counted_from_constants_become_positions() -> None:
    graph = captured(opt()).graph  # computes cumsum(ones) - 1
    assert "counts" in {entry.value.name for entry in graph.inputs}
    assert not any("cumsum" in str(getattr(node, "op", "")) for node in graph.nodes)


def test_a_layer_that_attends_in_its_own_way_is_refused_by_name() -> None:
    class LinearAttention(nn.Module):
        def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
            return hidden_states, None

    model = llama()
    model.model.layers[1].self_attn = LinearAttention()
    with pytest.raises(CompileError, match=r"2 of 3 attention layers .*model\.layers\.1\.self_attn"):
        captured(model)


def test_a_module_without_attention_is_refused() -> None:
    class NoAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.embedding(ids)

    with pytest.raises(CompileError, match="0 of 1 attention layers"):
        captured(NoAttention())


def test_code_that_fixes_the_length_is_refused() -> None:
    with pytest.raises(CompileError, match="fixes the number of tokens"):
        captured(OneLayer(before=lambda x: x + torch.ones(11)[None, :, None]))


def test_code_that_depends_on_values_is_refused() -> None:
    def branch(x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x

    with pytest.raises(CompileError, match="OneLayer decides by the content of its input what it computes, and"):
        captured(OneLayer(before=branch))


def test_the_place_of_such_code_in_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_layers, "_REFUSED", {})
    config = hf.LongformerConfig(**SIZES, attention_window=[4, 4, 4], sep_token_id=2)
    with pytest.raises(CompileError, match=r"modeling_longformer\.py:\d+ in _get_question_end_index"):
        captured(hf.LongformerForQuestionAnswering(config))


def test_other_code_that_is_not_traced_is_refused_with_the_exporters_words() -> None:
    with pytest.raises(CompileError, match=r"torch\.export can't trace OneLayer: \w+Error: "):
        captured(OneLayer(before=lambda x: x.view(3, -1)))


def test_nobody_looks_up_where_operators_were_called() -> None:
    graph = export_source(load_source(OneLayer(), example_inputs=EXAMPLES)).graph
    assert not any(node.stack_trace for node in graph.nodes)
    assert not config.do_not_emit_stack_traces, "others trace as they did"


def test_nobody_remembers_what_operators_give_for_symbolic_shapes() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(dynamo.fake_tensor_cache_enabled)
        return x

    assert dynamo.fake_tensor_cache_enabled
    export_source(load_source(OneLayer(before=look), example_inputs=EXAMPLES))
    assert seen
    assert not any(seen)
    assert dynamo.fake_tensor_cache_enabled, "others trace as they did"


def test_operators_that_write_in_place_do_not_change_what_others_read() -> None:
    def in_place(x: Tensor) -> Tensor:
        y = x * 1.0
        z = y + 1.0
        y += 10.0
        return z + y

    found = captured(OneLayer(before=in_place))
    ids = torch.arange(6)[None]
    want = OneLayer(before=in_place)(ids)
    given = {"ids": ids.numpy(), "positions": np.arange(6)}
    got = found.program.evaluate([found.graph.hidden], given)[found.graph.hidden]
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert not any("add_." in str(getattr(node, "op", "")) for node in found.graph.nodes)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: {"other": x}, "returns dict"),
        (lambda x: (x, x, x), "returns tuple"),
    ],
)
def test_only_known_outputs_are_accepted(output: object, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        captured(OneLayer(after=output))  # type: ignore[arg-type]


def test_the_models_implementation_is_restored() -> None:
    module = llama()
    before = module.config._attn_implementation
    captured(module)
    assert module.config._attn_implementation == before


def test_a_weight_the_source_lacks_is_refused_if_it_is_used() -> None:
    import dataclasses

    source = load_source(llama())
    with pytest.raises(CompileError, match=r"has no weight model\.norm\.weight"):
        capture(dataclasses.replace(source, missing_weights=frozenset({"model.norm.weight", "unused.weight"})))
    capture(dataclasses.replace(source, missing_weights=frozenset({"unused.weight"})))


def test_examples_must_have_tokens() -> None:
    for example in (torch.zeros(5), torch.zeros(2, 5), torch.zeros(1, 2)):
        with pytest.raises(CompileError, match="example input 'ids'"):
            load_source(OneLayer(), example_inputs=(example,))
    with pytest.raises(CompileError, match="needs example inputs"):
        load_source(OneLayer())
    assert EXAMPLES[0].shape == (1, 11)
