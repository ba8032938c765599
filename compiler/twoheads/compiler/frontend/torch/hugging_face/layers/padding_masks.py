"""Models that hide the padding token wherever it stands, unless they are given a mask: they are given one of ones.

So every token of an input counts, as it does for all other models. XLM reads the number of tokens besides, as a number
of Python, where a graph has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PADDING_MASKS", "ones_for"]

_GUESSES = re.compile(r"^(Flaubert|FSMT|T5Gemma2?|XLM)Model$|^DPR(Context|Question)Encoder$|^SwitchTransformersStack$")
"""Classes that tell padding by its token; the last one makes its mask of ones where it is not traced."""


def ones_for(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks of ones that ``module`` needs beside ``inputs``; none for a model that guesses no padding."""
    if not any(_GUESSES.match(type(part).__name__) for part in module.modules()):
        return {}
    masks = {"attention_mask": "input_ids", "decoder_attention_mask": "decoder_input_ids"}
    # Of their shapes alone: a graph shows that they do not depend on tokens.
    return {mask: torch.ones(inputs[ids].shape, dtype=torch.int64) for mask, ids in masks.items() if ids in inputs}


class _AllTokens:
    """In the place of the tensor ``lengths``: as many tokens as there are."""

    device = torch.device("cpu")

    def size(self, _axis: int) -> int:
        return 1

    def max(self) -> _AllTokens:
        return self

    def item(self) -> int:
        return 0


class _NoCache:
    """In the place of a cache, which these models make for themselves whatever their settings say."""

    def get_seq_length(self) -> int:
        return 0

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return keys, values


def _without_guesses(part: Any, input_ids: Tensor | None = None, attention_mask: Any = None, **others: Any) -> Any:
    own = {**others, "lengths": _AllTokens(), "cache": _NoCache()}
    return type(part).forward(part, input_ids, attention_mask=attention_mask, **own)


PADDING_MASKS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "FlaubertModel": {"forward": _without_guesses},
    "XLMModel": {"forward": _without_guesses},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
