"""The engines of scans as ONNX, by operator: a block in chunks, with no loop over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from twoheads.export.emit.scans.channels import causal_conv, diagonal_scan, max_scan, selective_scan
from twoheads.export.emit.scans.heads import decayed_attention, gated_delta_rule
from twoheads.export.emit.scans.scan_graph import ScanGraph
from twoheads.graphs.program.engines.scan import COUNT, STEP, ScanEngine
from twoheads.graphs.program.engines.scan_operators import OPERATORS, ROWS

__all__ = ["scan_model"]

FORMS: Mapping[str, Callable[[ScanGraph], tuple[str, str]]] = {
    "causal_conv": causal_conv,
    "gated_delta_rule": gated_delta_rule,
    "decayed_attention": decayed_attention,
    "diagonal_scan": diagonal_scan,
    "max_scan": max_scan,
    "selective_scan": selective_scan,
}
"""Every operator's form: it reads the ports by their names, and gives ``y`` and the next state."""


def scan_model(engine: ScanEngine, variant: str = "block") -> onnx.ModelProto:
    """The ONNX model of ``engine``, with the ports that ``engine.ports()`` declares; standard operators only."""
    graph = ScanGraph(engine)
    graph.count = COUNT if variant == STEP else ""
    inputs, outputs = engine.ports(variant)
    for made, port in zip(FORMS[engine.operator](graph), outputs, strict=True):
        graph.reshape(made, *port.shape, output=port.name)
    if graph.count:
        form = OPERATORS[engine.operator]
        shapes = form.tokens(graph.sizes).items()
        graph.hide([(port, len(shape) - shape.index(ROWS) - 1, form.absent.get(port, 0)) for port, shape in shapes])
    return graph.model(f"{engine.name}.{variant}", inputs, outputs)
