"""Token-wise regions: a scan over blocks that calls the region's engine, or one call where nothing is on an axis."""

from __future__ import annotations

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph, declared
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.program.program import TokenwiseEngine, TokenwiseStage

__all__ = ["add_tokenwise", "call_once"]


def add_tokenwise(
    graph: Graph, stage: TokenwiseStage, engine: TokenwiseEngine, values: Values, engines: Engines
) -> None:
    """Appends a region to the file's own graph; its weights are initializers by name."""
    on_axis = [name for name in dict.fromkeys(stage.inputs) if values.declared(name).axis is not None]
    if not on_axis:
        given = {name: values.whole(name) for name in stage.inputs}
        for value, made in zip(stage.outputs, call_once(graph, stage, engine, engines, given), strict=True):
            values.set_blocks(value.name, made)
        return
    body = graph.body()
    given = {name: body.fresh("block") for name in on_axis}
    ports = dict(zip(stage.inputs, engine.inputs, strict=True))
    inputs = [declared(given[name], ports[name].dtype, ports[name].shape) for name in on_axis]
    given |= {name: values.whole(name) for name in stage.inputs if name not in given}
    results_of_block = call_once(body, stage, engine, engines, given)
    outputs = [(name, port.dtype) for name, port in zip(results_of_block, engine.outputs, strict=True)]
    blocks = [values.blocks(name) for name in on_axis]
    results = graph.ops(
        "Scan",
        *blocks,
        outputs=len(outputs),
        name=stage.name,
        num_scan_inputs=len(blocks),
        body=body.proto("block", inputs, outputs),
    )
    for value, result in zip(stage.outputs, results, strict=True):
        values.set_blocks(value.name, result)


def call_once(
    graph: Graph, stage: TokenwiseStage, engine: TokenwiseEngine, engines: Engines, given: dict[str, str]
) -> tuple[str, ...]:
    """One call of a stage's engine; ``given`` are its inputs by the program's names."""
    function = engines.tokenwise(engine)
    return graph.call(function, *(given[name] for name in stage.inputs), *stage.weights)
