"""Sparse attention that is full attention for inputs of a few tokens: models are exact up to there, and end there.

An indexer chooses the keys that a query attends to by their content, ``index_topk`` of them: all, where there are no
more. Doge does the same by a number of each key that it adds to the scores. BigBird's random blocks begin where an
input is longer than the blocks that a token sees; below, its own code takes full attention. SeamlessM4T v2 cuts speech
into chunks, of which one is longer than what people say at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twoheads.compiler.frontend.torch.operators.attention_op import attention_op
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Limit

__all__ = ["SPARSE_LAYERS", "dense_length", "keeping_sparse"]

_FULL, _SPARSE = "original_full", "block_sparse"


def dense_length(module: nn.Module) -> Limit | None:
    """The longest input that all layers of the model attend to in full; ``None`` if every one."""
    found: list[tuple[int, str]] = []
    for part in cast("Iterator[Any]", module.modules()):
        if keys := _KEYS.get(type(part).__name__):
            found.append((int(getattr(part, keys)), "the range in which it chooses all keys"))
        elif type(part).__name__ == _IN_CHUNKS:
            if chunk := part.config.speech_encoder_chunk_size:
                found.append((int(chunk), "its first chunk, in which it attends to all keys"))
        elif getattr(part, "attention_type", None) == _SPARSE and hasattr(part, "config"):
            length = (5 + 2 * part.config.num_random_blocks) * part.config.block_size
            found.append((length, "the range in which it attends to all keys instead of random blocks"))
    return Limit(*min(found)) if found else None


@contextmanager
def keeping_sparse(module: nn.Module, *, full: bool = False) -> Generator[None]:
    """Undoes at its end that the library makes a model of random blocks one of full attention at a short input.

    Args:
        module: The model.
        full: Make it one at once.
    """
    sparse = [cast("Any", part) for part in module.modules() if getattr(part, "attention_type", None) == _SPARSE]
    try:
        for part in sparse if full else ():
            part.set_attention_type(_FULL)
        yield
    finally:
        for part in sparse:  # outer ones first: they set the inner ones
            part.set_attention_type(_SPARSE)


def _all_keys(part: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """The numbers of all keys, ``[batch, n, n]``, in the place of those that an indexer chooses."""
    batch, length = hidden_states.shape[:2]
    return torch.arange(length).expand(batch, length, length)


def _doge(
    part: Any, hidden_states: Tensor, position_embeddings: Any, attention_mask: Any = None, cache: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """Doge's attention, which adds a number to the scores of each key: one more product, of 1 with that number."""
    from transformers.models.doge.modeling_doge import apply_rotary_pos_emb

    if cache is not None:
        raise CompileError(type(part).__name__, "is given an earlier sequence", "compile the model without a cache")
    shape = (*hidden_states.shape[:2], -1, part.head_dim)
    query = part.q_norm(part.q_proj(hidden_states).view(shape)).transpose(1, 2)
    key = part.k_norm(part.k_proj(hidden_states).view(shape)).transpose(1, 2)
    value = part.v_proj(hidden_states)
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    weights = torch.exp(part.A * functional.softplus(part.dt_proj(value))).transpose(1, 2)
    query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
    key = torch.cat([key, weights[..., None] / part.scaling], -1)
    mixed = attention_op(query, key, value.view(shape).transpose(1, 2), attention_mask, None, None, part.scaling, 0.0)
    return part.o_proj(mixed.transpose(1, 2).reshape(*shape[:2], -1)), None


_IN_CHUNKS = "SeamlessM4Tv2ConformerEncoder"
"""Attends to whole chunks of its input; the first one is 20,000 rows, more than six minutes of speech."""

_INDEXERS = ("AXK2Indexer", "DeepseekV32Indexer", "Dots3NoteTextIndexer", "GlmMoeDsaIndexer", "HYV4Indexer")
_KEYS: Mapping[str, str] = {**dict.fromkeys(_INDEXERS, "index_topk"), "DogeAttention": "keep_window_size"}
"""By the name of the library's class: its attribute that says how many keys a query attends to at most."""

SPARSE_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    **{name: {"forward": _all_keys} for name in _INDEXERS},
    "DogeAttention": {"forward": _doge},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
