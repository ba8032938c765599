"""X-MOD: each layer has adapters for many languages, of which an input goes through one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

__all__ = ["LANGUAGE_LAYERS"]


def _in_one_language(part: Any, input_ids: Tensor | None = None, lang_ids: Any = None, **others: Any) -> Any:
    """The model's default language, by its number: nothing depends on tokens then."""
    language = part.config.default_language
    if lang_ids is None and language is not None:
        lang_ids = list(part.encoder.layer[0].output.adapter_modules).index(language)
    return type(part).forward(part, input_ids, lang_ids=lang_ids, **others)


def _adapter(part: Any, lang_ids: int, hidden_states: Tensor) -> Tensor:
    """The library's order of norms, skip and adapter; it gathers the inputs of each language."""
    normed = hidden_states
    if part.adapter_layer_norm is not None:
        normed = part.adapter_layer_norm(hidden_states)
    elif part.adapter_reuse_layer_norm:
        normed = part.LayerNorm(hidden_states)
    adapter = list(part.adapter_modules.values())[lang_ids]
    return cast("Tensor", adapter(normed) + (normed if part.ln_before_adapter else hidden_states))


LANGUAGE_LAYERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "XmodModel": {"forward": _in_one_language},
    "XmodOutput": {"lang_adapter": _adapter},
}
"""By the name of the library's class: the methods that are replaced while it is captured."""
