"""What computes whole blocks of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twoheads.runtime.generation.kept.rows import KeptBlocks

__all__ = ["PromptRows", "RunsPrompts"]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """What is new of some whole blocks.

    Attributes:
        kept: Keys and values, in the order of ``Steps.kept``, ``[1, kv_heads, tokens, head_dim]``.
        hidden: The hidden states of the last token ``[width]``, if they were asked for.
        calls: Engine calls that it took.
    """

    kept: list[npt.NDArray[Any]]
    hidden: npt.NDArray[Any] | None
    calls: int


class RunsPrompts(Protocol):
    """Computes whole blocks of a prompt by runs of the tile program."""

    def prepare(self, blocks: int) -> None:
        """Opens what a prompt of so many whole blocks needs."""
        ...

    def run(self, tokens: npt.NDArray[np.int64], kept: KeptBlocks, first: int, *, hidden: bool) -> PromptRows:
        """Computes the blocks of ``tokens`` behind the ``first`` ones, which ``kept`` has."""
        ...
