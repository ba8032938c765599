"""Layers that are refused by name say what they do, before anything is traced."""

from __future__ import annotations

import pytest
from torch import nn

from twoheads.compiler.frontend.torch.hugging_face.refused_layers import refuse_known
from twoheads.graphs.errors import CompileError

REASONS = {
    "LongformerForQuestionAnswering": "gives the tokens of the question, up to the first separator, global attention",
    "BrosSelfAttention": "where words stand to each other on the page: a bias that depends on content",
    "SamVisionSdpaAttention": "attends within windows of an image's grid",
    "GraniteSpeech5EncoderAttention": "has half as many rows behind some of its layers",
    "MBartForSequenceClassification": "puts the last token that is no padding in front of its decoder's tokens",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_layer_and_its_reason_are_named(name: str) -> None:
    around = nn.Module()
    around.inner = type(name, (nn.Module,), {})()
    with pytest.raises(CompileError, match=rf"inner \({name}\).*{REASONS[name]}"):
        refuse_known(around)


def test_others_pass() -> None:
    refuse_known(nn.Sequential(nn.Linear(2, 2)))
