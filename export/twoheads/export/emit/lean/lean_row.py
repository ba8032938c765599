"""All rewrites of an engine of one row, in their order."""

from __future__ import annotations

import onnx

from twoheads.export.emit.lean.flat_row import flatten_row
from twoheads.export.emit.lean.known_graph import KnownGraph
from twoheads.export.emit.lean.norms import fuse_norms
from twoheads.export.emit.lean.rotary import fuse_rotary

__all__ = ["lean_row"]


def lean_row(model: onnx.ModelProto) -> None:
    """Rewrites an engine of one row, in place: the same sums and products by fewer operators."""
    graph = KnownGraph(model)
    fuse_rotary(graph)
    fuse_norms(graph)
    flatten_row(graph)
    graph.finish()
