"""A long row of attention whose later tiles are added up relative to the log-sum-exp of its first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.program import AttentionEngine
from twoheads.runtime.backends.protocol import Call

__all__ = ["AnchorBuffers", "AnchoredRow"]

MOST_WEIGHT = 1e12
"""The largest weight a tile, relative to the first, that is believed, on average. A score is rounded together with the
anchor: one that lies ``ln(1e12) = 28`` above it gets a weight that is off by up to 28 units of the last place, as any
softmax has it of a score of 28. Scores that are small themselves lie so far above a tile under a bias only, whose rows
therefore begin with the nearest tile."""

Array = npt.NDArray[Any]


class AnchorBuffers:
    """Uninitialised memory of one thread's rows of ``engine``: the queries with their anchor, sums, and an ``lse``."""

    def __init__(self, engine: AttentionEngine) -> None:
        inputs, outputs = engine.ports("full_add")
        self.query: Array = np.empty(inputs[0].shape, engine.dtype)
        # Two sums that take turns, so that no call reads what it writes.
        self.sums = tuple(tuple(np.empty(port.shape, port.dtype) for port in outputs) for _ in range(2))
        self.lse: npt.NDArray[np.float32] = np.empty(outputs[1].shape, np.float32)


class AnchoredRow:
    """One thread's sums over the tiles of a row, by the ``_add`` variants of an attention engine.

    :meth:`begin`, the first tile's engine writes :attr:`first`, :meth:`add` for every other tile, :meth:`finish`.

    Args:
        engine: The geometry.
        open_call: A new call of a variant.
        wrap: Makes a backend's tensor of an array.
        buffers: Its memory, which another row of the thread may have used before.
    """

    def __init__(
        self,
        engine: AttentionEngine,
        open_call: Callable[[str], Call],
        wrap: Callable[[Array], Any],
        buffers: AnchorBuffers,
    ) -> None:
        self._scale = engine.scale
        self._open = open_call
        self._query, self._sums, self.lse = buffers.query, buffers.sums, buffers.lse
        self.first = (wrap(self._sums[0][0]), wrap(self.lse))
        self._tensors = [tuple(wrap(array) for array in sums) for sums in self._sums]
        self._wrapped_query = wrap(self._query)
        self._calls: dict[tuple[bool, int], Call] = {}
        self._turn = 0
        self._added = 0

    def begin(self, query: Array) -> None:
        """Takes the block's queries ``[1, q_num_heads, block, head_dim]``, after :attr:`first` has been written."""
        self._query[..., :-1] = query
        np.divide(self.lse, -self._scale, out=self._query[..., -1])
        self._sums[0][1].fill(1)
        self._turn = self._added = 0

    def add(self, key: Any, value: Any, mask: Any) -> None:
        """Adds one tile; ``mask`` is ``None`` where all is seen."""
        call = self._calls.get((mask is not None, self._turn)) or self._new_call(mask is not None)
        call.bind_input(1, key)
        call.bind_input(2, value)
        if mask is not None:
            call.bind_input(3, mask)
        call.run()
        self._turn = 1 - self._turn
        self._added += 1

    def _new_call(self, masked: bool) -> Call:
        """What stays bound for good: the queries, the sum that is read and the one that is written."""
        call = self._open("masked_add" if masked else "full_add")
        call.bind_input(0, self._wrapped_query)
        for port in range(2):
            call.bind_input(3 + masked + port, self._tensors[self._turn][port])
            call.bind_output(port, self._tensors[1 - self._turn][port])
        self._calls[masked, self._turn] = call
        return call

    def finish(self, out: Array) -> bool:
        """Writes ``out [1, q_num_heads, block, v_head_dim]`` and the row's log-sum-exp to :attr:`lse`.

        Returns:
            Whether the sums are good; if not (later scores are far above the first tile's log-sum-exp, or not finite),
            nothing was written.
        """
        acc, weight = self._sums[self._turn]
        if not (weight <= MOST_WEIGHT * self._added).all():
            return False
        np.divide(acc, weight[..., None], out=out)
        self.lse += np.log(weight)
        return True
