"""Scans: a loop over blocks that hands the engine's state from one to the next."""

from __future__ import annotations

from dataclasses import dataclass

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph, declared
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.program.engines.scan import STEP
from twoheads.graphs.program.program import ScanEngine, ScanStage

__all__ = ["Carried", "add_scan"]


@dataclass(frozen=True, slots=True)
class Carried:
    """What a scan of a step begins with.

    Attributes:
        state: The state before the first token.
        counts: How many tokens of each block are there, int64 ``[blocks, 1]``; the others leave the state as it is.
    """

    state: str
    counts: str


def add_scan(
    graph: Graph, stage: ScanStage, engine: ScanEngine, values: Values, engines: Engines, carried: Carried | None = None
) -> str:
    """Appends a scan; its output is among ``values`` then.

    What it reads holds zeros in the rows of padding, as in a run: a number that is none would reach other rows there.

    Args:
        graph: Where to.
        stage: What to compute.
        engine: Its engine.
        values: Hold what it reads.
        engines: Make the functions.
        carried: What it begins with: zeros if not given.

    Returns:
        The state behind the last block.
    """
    body, port = graph.body(), engine.state
    state, given = body.fresh("state"), [body.fresh("block") for _ in stage.inputs]
    shapes = zip(given, engine.tokens, strict=True)
    inputs = [declared(state, port.dtype, port.shape), *(declared(name, p.dtype, p.shape) for name, p in shapes)]
    blocks = [values.padded_blocks(name) for name in stage.inputs]
    count: list[str] = []
    if carried is not None:
        count = [body.fresh("count")]
        inputs.append(declared(count[0], "int64", [1]))
        blocks.append(carried.counts)
    function = engines.scan(engine, "block" if carried is None else STEP)
    y, following = body.call(function, *given, *stage.weights, state, *count)
    outputs = [(following, port.dtype), (y, engine.output.dtype)]
    start = graph.op("Expand", graph.float32(0.0), graph.ints(*port.shape)) if carried is None else carried.state
    last, made = graph.ops(
        "Scan",
        start,
        *blocks,
        outputs=2,
        name=stage.name,
        num_scan_inputs=len(blocks),
        body=body.proto("block", inputs, outputs),
    )
    values.set_blocks(stage.output.name, made)
    return last
