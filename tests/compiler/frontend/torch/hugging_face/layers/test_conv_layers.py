"""ConvBERT's kernels of its own making, as shifted rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.load_source import LoadedSource, load_source
from twoheads.compiler.ir.source_program import Captured, example_inputs
from twoheads.compiler.original.torch_original import TorchOriginal

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "embedding_size": 32, "conv_kernel_size": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def convbert() -> tuple[LoadedSource, Captured]:
    torch.manual_seed(0)
    model = hf.ConvBertModel(hf.ConvBertConfig(**SIZES)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that kernels differ from token to token
    source = load_source(model)
    return source, capture(source)


@pytest.mark.parametrize("length", [1, 4, 23])
def test_rows_around_a_token_are_weighed_as_in_the_library(
    convbert: tuple[LoadedSource, Captured], length: int
) -> None:
    source, captured = convbert
    given = example_inputs(captured.program.inputs, {"n": length}, seed=length)
    got = captured.program.evaluate([captured.graph.hidden], given)[captured.graph.hidden]
    expected, _ = TorchOriginal(source).hidden_and_logits(torch.from_numpy(given["input_ids"]))
    np.testing.assert_allclose(got[0], expected.numpy(), atol=2e-5)
    assert len(list(captured.graph.attentions)) == 1
