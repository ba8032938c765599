"""What the tests of the library's own architectures share: small configurations, and weights that matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def make(model: Any, config: Any, **sizes: Any) -> Callable[[], hf.PreTrainedModel]:
    """Builds ``model`` of a ``config`` with ``sizes`` when it is called."""
    return lambda: model(config(**sizes))


def with_large_weights(build: Callable[[], hf.PreTrainedModel]) -> hf.PreTrainedModel:
    """The model with matrices so large that its attention matters; its own initial ones are very small."""
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model
