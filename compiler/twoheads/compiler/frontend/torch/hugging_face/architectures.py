"""Everything that is done for one architecture and not for all: code of the library replaced while it is captured.

Each replacement computes what the original computes, in a form that a graph can hold; a bundle is verified against the
original. :func:`replaced` is the one place where they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import NormalDist
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.hugging_face.layers.conv_layers import CONV_LAYERS
from twoheads.compiler.frontend.torch.hugging_face.layers.expert_layers import EXPERT_LAYERS
from twoheads.compiler.frontend.torch.hugging_face.layers.exponential_layers import EXPONENTIAL_LAYERS
from twoheads.compiler.frontend.torch.hugging_face.layers.language_layers import LANGUAGE_LAYERS
from twoheads.compiler.frontend.torch.hugging_face.layers.local_attention import LOCAL_ATTENTION
from twoheads.compiler.frontend.torch.hugging_face.layers.padding_masks import PADDING_MASKS
from twoheads.compiler.frontend.torch.hugging_face.layers.recurrent_layers import RECURRENT_LAYERS
from twoheads.compiler.frontend.torch.hugging_face.layers.relative_positions import RELATIVE_POSITIONS
from twoheads.compiler.frontend.torch.hugging_face.layers.sequence_heads import SEQUENCE_HEADS
from twoheads.compiler.frontend.torch.hugging_face.layers.sinusoids import SINUSOIDS
from twoheads.compiler.frontend.torch.hugging_face.layers.sparse_layers import SPARSE_LAYERS, keeping_sparse
from twoheads.compiler.frontend.torch.hugging_face.layers.vision_layers import VISION_LAYERS

__all__ = ["has_own_attention", "replaced", "reset_rope"]

_Method: TypeAlias = Callable[..., Any]

OWN_ATTENTION = frozenset({"LEDEncoderSelfAttention", "LongT5LocalAttention", "LongformerSelfAttention"})
"""Classes whose attention the library computes in one form only."""


@contextmanager
def replaced(module: nn.Module) -> Generator[None]:
    """Within it, the parts of ``module`` that can't be captured as they are compute the same in another form."""
    with ExitStack() as stack:
        stack.enter_context(keeping_sparse(module, full=True))
        for part in module.modules():
            methods = _REPLACEMENTS.get(type(part).__name__, {})
            if not methods and _rope_types(part) & {"dynamic", "longrope"}:
                methods = {"forward": _rope}
            for name, method in methods.items():
                stack.enter_context(_with_method(part, name, method))
        yield


@contextmanager
def _with_method(part: Any, name: str, method: _Method) -> Generator[None]:
    setattr(part, name, partial(method, part))  # an attribute of the instance hides the method of its class
    try:
        yield
    finally:
        delattr(part, name)


def has_own_attention(module: nn.Module) -> bool:
    """Whether some attention of the model is computed by code that has no second form to compare with."""
    return any(type(part).__name__ in OWN_ATTENTION for part in module.modules())


# RoPE whose frequencies depend on the length


def _rope_types(part: Any) -> set[str]:
    kinds = getattr(part, "rope_type", None)
    if kinds is None or not hasattr(type(part).forward, "__wrapped__"):
        return set()
    return {str(kind) for kind in (cast("dict[str, Any]", kinds).values() if isinstance(kinds, dict) else [kinds])}


def _rope(part: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
    """A rotary embedding's forward with its frequencies computed from the length, where the library branches on it."""
    names = {} if layer_type is None else {"layer_type": layer_type}
    forward = type(part).forward.__wrapped__
    kind = part.rope_type if layer_type is None else part.rope_type[layer_type]
    if kind not in ("dynamic", "longrope"):
        return forward(part, x, position_ids, **names)
    length = torch.zeros((), dtype=torch.int64) + position_ids.shape[-1]
    frequencies = _dynamic(part, length, layer_type) if kind == "dynamic" else _longrope(part, length, layer_type)
    prefix = "" if layer_type is None else f"{layer_type}_"
    return forward(_With(part, {f"{prefix}inv_freq": frequencies}), x, position_ids, **names)


def _dynamic(part: Any, length: Tensor, layer_type: str | None) -> Tensor:
    """Frequencies ``[rotary_dim / 2]`` at ``length``; as the library's, which takes a tensor for it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies: Tensor
    frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](
        part.config, torch.device("cpu"), seq_len=cast("Any", length), layer_type=layer_type
    )
    return frequencies


def _longrope(part: Any, length: Tensor, layer_type: str | None) -> Tensor:
    """The short or the long frequencies ``[rotary_dim / 2]``; which, depends on the whole input."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = part.config.rope_parameters
    original = (parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"]
    short, long = (
        ROPE_INIT_FUNCTIONS["longrope"](part.config, torch.device("cpu"), seq_len=tokens, layer_type=layer_type)[0]
        for tokens in (original, original + 1)
    )
    return torch.where(length > original, long, short)


class _With:
    """A module with some of its attributes replaced, to call a function of its class with."""

    def __init__(self, part: Any, attributes: Mapping[str, Any]) -> None:
        self._part = part
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def reset_rope(module: nn.Module) -> None:
    """Forgets the longest input that dynamic RoPE has seen: the library keeps its frequencies for shorter ones."""
    for part in module.modules():
        if "dynamic" not in _rope_types(part):
            continue
        rope = cast("Any", part)
        kinds = rope.rope_type if isinstance(rope.rope_type, dict) else {"": rope.rope_type}
        for layer_type, kind in cast("dict[str, str]", kinds).items():
            prefix = f"{layer_type}_" if layer_type else ""
            if kind == "dynamic":
                setattr(rope, f"{prefix}inv_freq", getattr(rope, f"{prefix}original_inv_freq").clone())
                setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


# Gemma 3n: a threshold by the inverse of the normal distribution, which engines do not have, at a fixed probability


def _gaussian_topk(part: Any, inputs: Tensor) -> Tensor:
    deviations = NormalDist().inv_cdf(part.activation_sparsity)
    mean, deviation = inputs.mean(dim=-1, keepdim=True), inputs.std(dim=-1, keepdim=True, unbiased=False)
    return torch.relu(inputs - (mean + deviation * deviations))


_REPLACEMENTS: Mapping[str, Mapping[str, _Method]] = {
    **CONV_LAYERS,
    **EXPERT_LAYERS,
    **EXPONENTIAL_LAYERS,
    **LANGUAGE_LAYERS,
    **LOCAL_ATTENTION,
    **PADDING_MASKS,
    **RECURRENT_LAYERS,
    **RELATIVE_POSITIONS,
    **SEQUENCE_HEADS,
    **SINUSOIDS,
    **SPARSE_LAYERS,
    **VISION_LAYERS,
    "Gemma3nTextMLP": {"_gaussian_topk": _gaussian_topk},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
