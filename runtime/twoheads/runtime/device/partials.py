"""One lane's row of attention: partial results side by side in device memory, merged by our kernel."""

from __future__ import annotations

from math import prod

from twoheads.graphs.program.program import AttentionEngine
from twoheads.runtime.backends.cuda_kernels import merge
from twoheads.runtime.backends.device_protocol import Device, DeviceArray, Stream
from twoheads.runtime.device.layout import align

__all__ = ["PARTIALS", "Partials", "partials_bytes"]

PARTIALS = 8
"""Partial results that are merged at a time."""


def partials_bytes(engine: AttentionEngine) -> int:
    """Device memory of a lane's :class:`Partials`."""
    rows = engine.q_num_heads * engine.block_size
    return align((PARTIALS + 1) * rows * engine.v_head_dim * 4) + align((PARTIALS + 2) * rows * 4)


class Partials:
    """Slots ``0 .. PARTIALS`` for ``out`` and ``lse``, of which a run ``[low, high)`` holds the row so far.

    The kernel may not write what it reads. So the merged result goes to the first slot when the run ends at the last
    one, and to the last slot when it begins at the first; the run then grows from there towards the other end.

    Args:
        device: Where they are.
        engine: The geometry.
        address: Of :func:`partials_bytes` bytes.
        stream: On which they are written and merged.
    """

    def __init__(self, device: Device, engine: AttentionEngine, address: int, stream: Stream) -> None:
        self._device = device
        self._stream = stream
        self._out_shape = (1, engine.q_num_heads, engine.block_size, engine.v_head_dim)
        self._rows = engine.q_num_heads * engine.block_size
        self._width = engine.v_head_dim
        self._outs = address
        self._lses = address + align((PARTIALS + 1) * self._rows * self._width * 4)
        self._low = self._high = 1
        self._upwards = True

    def begin(self, sinks: DeviceArray | None) -> None:
        """Begins a row, with learned ``sinks`` (their logits, as a log-sum-exp without a value) or nothing."""
        self._low = self._high = 1
        self._upwards = True
        if sinks is not None:
            self._low = 0
            self._device.zero(self._out(0), self._stream)
            self._device.copy(self._lse(0).rows, sinks.rows, self._stream)

    def next(self) -> tuple[DeviceArray, DeviceArray]:
        """Where the next tile's ``out`` and ``lse`` go; the tiles so far are merged if all slots are taken."""
        if self._upwards and self._high == PARTIALS:
            self._merge(self._out(PARTIALS).address, self._lse(PARTIALS).address)
            self._low, self._high, self._upwards = PARTIALS, PARTIALS + 1, False
        elif not self._upwards and self._low == 1:
            self._merge(self._out(0).address, self._lse(0).address)
            self._low, self._high, self._upwards = 0, 1, True
        if self._upwards:
            slot = self._high
            self._high += 1
        else:
            self._low -= 1
            slot = self._low
        return self._out(slot), self._lse(slot)

    @property
    def spare_lse(self) -> DeviceArray:
        """Where a log-sum-exp goes that nobody reads."""
        return self._lse(PARTIALS + 1)

    def finish(self, target: DeviceArray) -> None:
        """Merges the row into ``target [1, q_num_heads, block, v_head_dim]``."""
        self._merge(target.address, self.spare_lse.address)

    def _merge(self, out: int, lse: int) -> None:
        count = self._high - self._low
        outs = DeviceArray(self._out(self._low).address, "float32", (count, self._rows, self._width))
        lses = DeviceArray(self._lse(self._low).address, "float32", (count, self._rows))
        merge(self._device, outs, lses, out, lse, self._stream)

    def _out(self, slot: int) -> DeviceArray:
        return DeviceArray(self._outs + slot * 4 * prod(self._out_shape), "float32", self._out_shape)

    def _lse(self, slot: int) -> DeviceArray:
        return DeviceArray(self._lses + slot * 4 * self._rows, "float32", self._out_shape[:3])
