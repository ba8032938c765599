"""What the process of every type needs, loaded once: the libraries, and the exporter's translations."""

from __future__ import annotations

import logging

from tools.breadth.child import send_measure
from twoheads.export.emit.graph_builder import OPSET
from twoheads.export.emit.torchlib_registry import translated

__all__ = ["send_measure"]

logging.getLogger("torch.onnx").setLevel(logging.ERROR)
translated(OPSET)
