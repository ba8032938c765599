"""Our kernels: what they compute, how they are called, and where their code is.

Their code is PTX, made from Triton by ``python -m twoheads.export.device_kernels`` for compute capability 8.0 and up;
the driver translates it for its device when it loads it.
"""

from __future__ import annotations

from pathlib import Path

from twoheads.graphs.errors import InternalError
from twoheads.runtime.backends.device_protocol import Device, DeviceArray, Kernel, Stream

__all__ = ["KERNELS", "MERGE_ROWS", "MERGE_STATE", "ZERO_BYTES", "ZERO_TAIL", "kernel_image", "merge", "zero_tail"]

MERGE_ROWS = 16
"""Rows of one block of the grid of :data:`MERGE_STATE`."""

MERGE_STATE = Kernel("merge_state", "merge_state.ptx", 128, "ppppiii", shared=64)
"""Merges ``count`` partials into one.

Arguments: ``outs [count, rows, width]`` and ``lses [count, rows]``, the partials, then ``out [rows, width]`` and
``lse [rows]``, all float32, then ``count``, ``rows``, ``width``. The result may not overlap the partials.
"""

ZERO_BYTES = 1024
"""Bytes of one block of the grid of :data:`ZERO_TAIL`."""

ZERO_TAIL = Kernel("zero_tail", "zero_tail.ptx", 128, "ppiii")
"""Zeroes what lies behind the last real token of a tile ``[outer, tokens, inner]``.

Arguments: the tile, the address of the int32 number of real tokens in it (so that a graph serves any), then ``outer``,
``tokens`` and ``inner``, in bytes.
"""

KERNELS = (MERGE_STATE, ZERO_TAIL)


def kernel_image(kernel: Kernel) -> bytes:
    """The PTX of ``kernel``, ended by a zero byte as the driver wants it."""
    return (Path(__file__).parent / kernel.image).read_bytes() + b"\0"


def merge(device: Device, outs: DeviceArray, lses: DeviceArray, out: int, lse: int, stream: Stream) -> None:
    """Queues the merge of partials ``outs [count, rows, width]``, ``lses [count, rows]`` into ``out`` and ``lse``."""
    count, rows, width = outs.shape
    if outs.dtype != "float32" or lses.shape != (count, rows):
        raise InternalError(f"merge of {outs} and {lses}")
    arguments = (outs.address, lses.address, out, lse, count, rows, width)
    device.launch(MERGE_STATE, -(-rows // MERGE_ROWS), arguments, stream)


def zero_tail(device: Device, tile: int, real: int, sizes: tuple[int, int, int], stream: Stream) -> None:
    """Queues that the tile at ``tile`` of ``sizes (outer, tokens, inner)`` is zeroed behind the tokens at ``real``."""
    outer, tokens, inner = sizes
    blocks = -(-outer * tokens * inner // ZERO_BYTES)
    device.launch(ZERO_TAIL, blocks, (tile, real, outer, tokens, inner), stream)
