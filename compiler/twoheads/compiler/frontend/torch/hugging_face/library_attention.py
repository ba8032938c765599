"""Our functions in the place of a transformers model's eager attention, for as long as a block lasts.

Transformers looks attention and masks up by the name in a model's configuration, and some models do more where that
name is one of the library's own: they build a sparse mask. So ours take the place of ``eager`` and have no name of
their own: everything else that the model does is what the library's own eager code does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from twoheads.graphs.errors import CompileError

__all__ = ["EAGER", "in_place_of_eager", "require_understood", "using_attention"]

EAGER = "eager"
"""The library's name for its matrix products and a softmax."""

_NOT_MEANT_FOR_ATTENTION = frozenset(
    {
        "cache_position",  # where a cache is written: there is none
        "deterministic",  # of a kernel
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",  # of kernels that pack sequences; the mask says what is seen
        "return_dict",
        "sliding_window",  # of kernels without a mask; the mask says it, and more exactly
        "use_cache",
    }
)
"""Keywords that reach attention functions and change nothing where a mask says what is seen."""


@contextmanager
def using_attention(module: nn.Module, name: str) -> Generator[None]:
    """Within it a transformers model uses the attention ``name``; one that has no choice stays as it is.

    Raises:
        ValueError: The model knows no such attention.
    """
    model = cast("Any", module)
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    try:
        if type(model)._can_set_attn_implementation() or model.config.sub_configs:
            model.set_attn_implementation(name)
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


@contextmanager
def in_place_of_eager(
    module: nn.Module, attention: Callable[..., Any], mask: Callable[..., Any] | None = None
) -> Generator[None]:
    """Within it the model's eager attention is ``attention``, and its masks are made by ``mask`` if given.

    Another model that runs eagerly in the same process at the same time meets these functions as well: they compute
    what they say.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    with using_attention(module, EAGER):
        attentions, masks = cast("Any", ALL_ATTENTION_FUNCTIONS), cast("Any", ALL_MASK_ATTENTION_FUNCTIONS)
        attentions[EAGER] = attention
        if mask is not None:
            masks[EAGER] = mask
        try:
            yield
        finally:
            del attentions[EAGER]
            if mask is not None:
                del masks[EAGER]


def require_understood(module: nn.Module, keywords: Mapping[str, Any]) -> None:
    """Refuses what an attention function was given beside the keywords that it knows.

    Raises:
        CompileError: Names the keyword.
    """
    for name, value in keywords.items():
        if value is None or name in _NOT_MEANT_FOR_ATTENTION or (name == "dropout" and value == 0):
            continue
        raise CompileError(
            type(module).__name__,
            f"gives its attention {name!r}, a keyword that is not understood: it may say which keys are seen",
            "compile a model whose scores are products of queries and keys, masked, with a bias by distance at most",
        )
