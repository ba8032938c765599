"""Classifiers of whole texts that read the decoder's row at the last end token (BART, T5), wherever a text has it.

The decoder reads the same tokens as the encoder, one place later. Which row that is, is arithmetic of whole numbers,
which runs on the host. A text without an end token is refused there, as the library refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twoheads.compiler.frontend.torch.hugging_face.layers.local_attention import require_no_padding

__all__ = ["SEQUENCE_HEADS", "shifts_its_tokens"]

MISSING = 1 << 40
"""Added to the row's number where there is none: beyond every text."""


def shifts_its_tokens(module: nn.Module) -> bool:
    """Whether the model's decoder reads the encoder's tokens, and no others."""
    return type(module).__name__ in SEQUENCE_HEADS


def _at_last_end(part: Any, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> Any:
    from transformers.modeling_outputs import Seq2SeqSequenceClassifierOutput

    require_no_padding(part, attention_mask)
    model = part.model if hasattr(part, "model") else part.transformer
    places = torch.arange(input_ids.shape[1])[None]
    # A row of zeros goes in front, which a slice of one token less could not leave to a text of one token.
    before = torch.where(places == 0, part.config.decoder_start_token_id, functional.pad(input_ids, (1, -1)))
    hidden = model(input_ids, decoder_input_ids=before, use_cache=False)[0]
    ends = (input_ids == part.config.eos_token_id).to(torch.int64)
    last = (ends * (places + 1)).argmax(1)
    lacking = (ends.cumsum(1)[:, -1] == 0).to(torch.int64)
    row = hidden.index_select(1, last + lacking * MISSING)
    return Seq2SeqSequenceClassifierOutput(logits=part.classification_head(row[:, 0]))


SEQUENCE_HEADS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    f"{name}ForSequenceClassification": {"forward": _at_last_end}
    for name in ("Bart", "BigBirdPegasus", "MT5", "Mvp", "T5", "UMT5")
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
