"""Inputs of at most one block that are run alone: one call of an engine that holds the whole body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.one_block import LENGTH, OneBlock
from twoheads.graphs.program import TOKENS
from twoheads.runtime.backend import Backend
from twoheads.runtime.backend_emulator import EmulatorBackend
from twoheads.runtime.bundle_reader import Bundle
from twoheads.runtime.engine_pool import EnginePool
from twoheads.runtime.weights import Weights

__all__ = ["ShortInputs"]


class ShortInputs:
    """The program and the engines of such runs.

    The engines are opened at the first short input, and then stay beside those of longer ones: a backend packs weights
    for each. Their kernels use all threads of a run, because there are no blocks to compute at the same time.

    Args:
        bundle: Where the files are.
        weights: As for the other engines.
        backend: Likewise.
        threads: Of a run.
    """

    def __init__(self, bundle: Bundle, weights: Weights, backend: Backend, threads: int) -> None:
        # Accelerators are built for the engines of blocks.
        self._block: OneBlock | None = None if isinstance(backend, EmulatorBackend) else bundle.one_block
        self.program = None if self._block is None else self._block.program
        self.engines = EnginePool(bundle, weights, backend, program=self.program, kernel_threads=threads)

    def takes(self, lengths: Mapping[str, int]) -> bool:
        """Whether the bundle computes an input of these lengths, by axis, in one call."""
        return self._block is not None and self._block.takes(lengths)

    def arrays(
        self, given: Mapping[str, npt.NDArray[Any]], lengths: Mapping[str, int]
    ) -> Mapping[str, npt.NDArray[Any]]:
        """``given``, the arrays of the original program's inputs, and what the engine reads beside them."""
        return {**given, LENGTH: np.array([lengths[TOKENS]], np.int64)}
