"""Weights of a checkpoint that its model does not use: a part of the model that nothing would compute."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from torch import nn

from twoheads.graphs.errors import CompileError

__all__ = ["refuse_unused_weights"]

logger = logging.getLogger(__name__)

_COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")
"""Buffers that old versions of the library saved and that every model makes itself."""


def refuse_unused_weights(where: str, module: nn.Module, unused: Iterable[str]) -> None:
    """Refuses weights of layers that the model has; a whole part that it does not have at all is logged.

    A checkpoint of another task brings its head along, and the architecture that the configuration names has none. But
    a further layer, a bias or a norm within a layer, or an adapter's factors are something that its maker computed.

    Args:
        where: The folder or file, for messages.
        module: The loaded model.
        unused: Names of weights that it did not take.

    Raises:
        CompileError: Names one of them.
    """
    names = sorted(name for name in unused if not _COMPUTED.search(name))
    within = [name for name in names if _inside(module, name)]
    if within:
        raise CompileError(
            where,
            f"has weights that the model does not use: {within[0]} ({len(within)} of such)",
            "correct config.json, which describes a smaller model, or merge the adapter that they belong to",
        )
    if names:
        logger.warning("%s: %d weights are of a part that the model does not have, as %s", where, len(names), names[0])


def _inside(module: nn.Module, name: str) -> bool:
    """Whether the weight lies in a part of the model that is there: in a repeated layer, or beside weights."""
    known = dict(module.named_modules())
    base = getattr(module, "base_model_prefix", "")
    parts = name.split(".")
    for at in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:at])
        found = known.get(path, known.get(f"{base}.{path}"))
        if found is None:
            continue
        repeated = any(part.isdigit() for part in parts[: at + 1])
        return repeated or bool(list(found.parameters(recurse=False)))
    return False
