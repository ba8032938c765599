"""What the file returns: hidden states, logits of all or of the last token, an embedding."""

from __future__ import annotations

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.emit.tokenwise import add_tokenwise, call_once
from twoheads.export.one_file.emit.values import Values
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import Pooling, Program, TokenwiseEngine, TokenwiseStage, Value
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.runtime.stages.pooling import SMALLEST_NORM

__all__ = ["add_output", "output_shape"]


def output_shape(program: Program, output: str) -> tuple[int | str, ...]:
    """The shape of an output: the program's value, one row of it for ``last``, ``[1, width]`` for an embedding."""
    hidden = program.value(program.hidden)
    if output == "hidden":
        return hidden.shape
    if output == "embedding":
        return 1, hidden.block_shape(1)[-1]
    if program.logits is None:
        raise InternalError(f"{program.name} has no logits")
    logits = program.value(program.logits)
    return logits.block_shape(1) if output == "last" else logits.shape


def add_output(graph: Graph, program: Program, output: str, values: Values, lengths: Lengths, engines: Engines) -> str:
    """Appends what makes ``output`` of the body's values; the name of the result, shaped as :func:`output_shape`."""
    hidden = program.value(program.hidden)
    if output == "hidden":
        return values.whole(hidden.name)
    if output == "embedding":
        if program.pooling is None:
            raise InternalError(f"{program.name} has no pooling")
        return _embedding(graph, program.pooling, hidden, values, lengths)
    if program.logits is None:
        raise InternalError(f"{program.name} has no logits")
    if program.pooled_logits:
        return values.whole(program.logits)
    _, head = needed_stages(program, output)
    stages = [(stage, engine) for stage, engine in program.bindings if stage in head]
    if output == "last":
        return _last(graph, program, stages, values, lengths, engines)
    for stage, engine in stages:
        add_tokenwise(graph, stage, engine, values, engines)
    return values.whole(program.logits)


def _place_of_last(graph: Graph, value: Value, lengths: Lengths, size: int) -> tuple[str, str]:
    """The block that holds the last row, and where in it."""
    if value.axis is None:
        raise InternalError(f"the row value {value.name} has no last row")
    last = graph.op("Sub", lengths.rows(value.axis), graph.int64(1))
    return graph.op("Div", last, graph.int64(size)), graph.op("Mod", last, graph.int64(size))


def _last(
    graph: Graph,
    program: Program,
    stages: list[tuple[TokenwiseStage, TokenwiseEngine]],
    values: Values,
    lengths: Lengths,
    engines: Engines,
) -> str:
    """The head on the block with the last row, and that row of the result."""
    hidden = program.value(program.hidden)
    block, within = _place_of_last(graph, hidden, lengths, program.block_size)
    known = {hidden.name: graph.op("Gather", values.blocks(hidden.name), block, axis=0)}
    for stage, engine in stages:
        made = call_once(graph, stage, engine, engines, known)
        known |= {value.name: name for value, name in zip(stage.outputs, made, strict=True)}
    assert program.logits is not None
    logits = program.value(program.logits)
    return graph.op("Gather", known[logits.name], graph.vector(within), axis=logits.token_axis)


def _embedding(graph: Graph, pooling: Pooling, hidden: Value, values: Values, lengths: Lengths) -> str:
    """``[1, width]``, added up in float64 as the runtime does it."""
    if hidden.axis is None:
        raise InternalError(f"the row value {hidden.name} has no tokens to pool")
    at, width = hidden.token_axis, hidden.block_shape(1)[-1]
    whole = values.whole(hidden.name)
    if pooling.mode == "mean":
        total = graph.op("ReduceSum", graph.cast(whole, "float64"), graph.ints(at), keepdims=1)
        vector = graph.op("Div", total, graph.cast(lengths.rows(hidden.axis), "float64"))
    else:
        row = graph.int64(0) if pooling.mode == "cls" else graph.op("Sub", lengths.rows(hidden.axis), graph.int64(1))
        vector = graph.cast(graph.op("Gather", whole, graph.vector(row), axis=at), "float64")
    vector = graph.reshape(vector, 1, width)
    if pooling.normalize:
        norm = graph.op("Sqrt", graph.op("ReduceSum", graph.op("Mul", vector, vector), graph.ints(1), keepdims=1))
        vector = graph.op("Div", vector, graph.op("Max", norm, graph.constant(SMALLEST_NORM, "float64")))
    return graph.cast(vector, "float32")
