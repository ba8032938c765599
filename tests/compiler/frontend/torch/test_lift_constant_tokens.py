"""Models of one input size get a token axis of constant length, and stay the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.ir.source_graph import SequenceNode, SourceGraph
from twoheads.compiler.ir.source_program import Captured
from twoheads.graphs.errors import CompileError


def vision(**sizes: Any) -> hf.ViTModel:
    torch.manual_seed(0)
    given: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8} | sizes
    return hf.ViTModel(hf.ViTConfig(**given, intermediate_size=48, num_hidden_layers=2)).eval()


def hidden_of(captured: Captured, **inputs: Any) -> Any:
    return captured.program.evaluate([captured.graph.hidden], inputs)[captured.graph.hidden]


def test_patches_and_positions_are_spread_and_the_rest_is_token_wise() -> None:
    model = vision()
    captured = capture(load_source(model))
    graph, types = captured.graph, captured.graph.types()
    assert types[graph.hidden].shape == (1, "17", 32)
    assert all(types[name].axis == "17" for node in graph.attentions for name in node.inputs)
    spread = [node for node in graph.nodes if isinstance(node, SequenceNode)]
    assert [node.operator for node in spread] == ["concat", "concat"]
    assert all(types[node.inputs[0]].axis is None and node.type.axis == "17" for node in spread)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(image))[0].numpy()
    np.testing.assert_allclose(hidden_of(captured, pixel_values=image), expected, atol=1e-5)


def test_layers_keep_their_names() -> None:
    layers = [node.layer for node in capture(load_source(vision())).graph.attentions]
    assert layers == ["layers.0.attention", "layers.1.attention"]


@pytest.mark.parametrize(
    "sizes", [{"hidden_size": 34, "num_attention_heads": 2}, {"image_size": 16, "hidden_size": 40}]
)
def test_a_size_of_features_may_equal_the_number_of_tokens(sizes: dict[str, int]) -> None:
    graph: SourceGraph = capture(load_source(vision(**sizes))).graph
    assert {graph.types()[node.query].axis for node in graph.attentions} == {graph.types()[graph.hidden].axis}


def test_a_width_that_equals_the_number_of_tokens_is_refused() -> None:
    with pytest.raises(CompileError, match="17 tokens that no axis could be made of: another size is the same"):
        capture(load_source(vision(hidden_size=17, num_attention_heads=1)))


def test_a_number_of_tokens_that_is_used_for_something_else_is_refused() -> None:
    class Fixed(nn.Module):
        """Attends over 16 patches and mixes them by a matrix."""

        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(16, 16)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = image.reshape(1, 3, 16, 4).transpose(1, 2).reshape(1, 1, 16, 12)
            x = nn.functional.scaled_dot_product_attention(x, x, x)
            return self.mix(x[:, 0].transpose(1, 2)).transpose(1, 2)

    with pytest.raises(CompileError, match="tokens"):
        capture(load_source(Fixed(), example_inputs=(torch.randn(1, 3, 8, 8),)))
