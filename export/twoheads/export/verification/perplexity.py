"""How well logits predict the text that they were computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import AttentionStage, Program

__all__ = ["NextTokenLoss", "Perplexity", "predicted_tokens"]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The exponential of the mean negative log-likelihood of the next token, over the checked positions.

    Attributes:
        original: Of the original as it is, in float32.
        bundle: Of the bundle as it runs.
        tokens: How many next tokens.
    """

    original: float
    bundle: float
    tokens: int


class NextTokenLoss:
    """A sink of logits that adds up the next tokens' negative log-likelihoods.

    Args:
        tokens: int64 ``[n]``, the text.
        positions: int64 ``[p]``, the positions whose logits come; all of them by default. The last one has no next.
    """

    def __init__(self, tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64] | None = None) -> None:
        self._tokens = tokens
        self._positions = np.arange(len(tokens)) if positions is None else positions
        self._total = 0.0
        self.count = 0

    def write(self, start_row: int, rows: npt.NDArray[np.float32]) -> None:
        """Takes ``rows [count, vocabulary]`` of the positions from the ``start_row``-th on."""
        after = self._positions[start_row : start_row + len(rows)] + 1
        inside = after < len(self._tokens)
        scores = rows[inside].astype(np.float64)
        targets = self._tokens[after[inside]]
        top = scores.max(-1, initial=-np.inf)
        sums = top + np.log(np.exp(scores - top[:, None]).sum(-1))
        self._total += float((sums - scores[np.arange(len(targets)), targets]).sum())
        self.count += len(targets)

    @property
    def perplexity(self) -> float:
        """Of what came so far; not a number where nothing did, infinite where it is beyond float64."""
        mean = self._total / self.count if self.count else math.nan
        return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def predicted_tokens(program: Program, given: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64] | None:
    """The tokens that a language model's logits predict; ``None`` for any other model.

    A language model has one argument, of token numbers, logits for each of them, and no attention that looks ahead.
    """
    arguments = [entry for entry in program.inputs if entry.source == "argument"]
    if program.logits is None or program.pooled_logits or len(arguments) != 1:
        return None
    (argument,) = arguments
    logits = program.value(program.logits)
    if argument.limit is None or argument.limit > logits.block_shape(1)[-1] or argument.value.axis != logits.axis:
        return None
    stages = [stage for stage in program.body if isinstance(stage, AttentionStage)]
    at = np.arange(2)
    if any(stage.mask.dense(at[:1], at[1:]).any() for stage in stages):
        return None
    return np.asarray(given[argument.value.name], np.int64).reshape(-1)
