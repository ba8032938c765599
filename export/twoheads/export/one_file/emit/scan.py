"""Scans: a loop over blocks that hands the engine's state from one to the next."""

from __future__ import annotations

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph, declared
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.program.program import ScanEngine, ScanStage

__all__ = ["add_scan"]


def add_scan(graph: Graph, stage: ScanStage, engine: ScanEngine, values: Values, engines: Engines) -> None:
    """Appends a scan to the file's own graph; its state is zeros before the first block.

    What it reads holds zeros in the rows of padding, as in a run: a number that is none would reach other rows there.
    """
    body, port = graph.body(), engine.state
    state, given = body.fresh("state"), [body.fresh("block") for _ in stage.inputs]
    shapes = zip(given, engine.tokens, strict=True)
    inputs = [declared(state, port.dtype, port.shape), *(declared(name, p.dtype, p.shape) for name, p in shapes)]
    y, following = body.call(engines.scan(engine), *given, *stage.weights, state)
    outputs = [(following, port.dtype), (y, engine.output.dtype)]
    zeros = graph.op("Expand", graph.float32(0.0), graph.ints(*port.shape))
    blocks = [values.padded_blocks(name) for name in stage.inputs]
    _, made = graph.ops(
        "Scan",
        zeros,
        *blocks,
        outputs=2,
        name=stage.name,
        num_scan_inputs=len(blocks),
        body=body.proto("block", inputs, outputs),
    )
    values.set_blocks(stage.output.name, made)
