"""One token of a row of logits: the most likely, or drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.choosing.processors import LogitsProcessor, Scores
from twoheads.runtime.generation.choosing.warpers import softmax

__all__ = ["Chooser"]


class Chooser:
    """Chooses the tokens of one sequence.

    Args:
        processors: What changes the logits, in order.
        seed: Of a sample's random numbers, which are this sequence's own; ``None`` for the most likely tokens.
    """

    def __init__(self, processors: Sequence[LogitsProcessor], seed: np.random.SeedSequence | None) -> None:
        self._processors = processors
        self._random = None if seed is None else np.random.default_rng(seed)

    def scores(self, tokens: Sequence[int], logits: Scores) -> Scores:
        """The logits after all processors.

        Raises:
            InputError: A processor gives another shape.
        """
        scores = logits
        for process in self._processors:
            scores = process(tokens, scores)
            if scores.shape != logits.shape:
                problem = f"gives {list(scores.shape)} for logits {list(logits.shape)}"
                raise InputError("logits processor", problem, "give one score a class")
        return scores

    def choose(self, tokens: Sequence[int], logits: Scores) -> int:
        """The next token behind ``tokens``.

        Raises:
            InputError: No token is left, or the logits are no numbers.
        """
        scores = self.scores(tokens, logits)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            what = "are no numbers" if np.isnan(scores).any() else "leave no token that may come"
            fix = "loosen the settings, or verify the bundle"
            raise InputError("logits", f"behind {len(tokens)} tokens {what}", fix)
        if self._random is None:
            return best
        # The inverse of the distribution function at a random number; the last token has no end to fall behind.
        ends = np.cumsum(softmax(scores), dtype=np.float64)
        return int(np.searchsorted(ends, self._random.random() * ends[-1], side="right"))
