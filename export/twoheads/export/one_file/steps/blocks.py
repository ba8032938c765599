"""The body for a prompt: every stage over whole blocks, as in the file for whole inputs, behind what is kept."""

from __future__ import annotations

from twoheads.export.one_file.emit.attention import Queries, attend
from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.inputs import add_inputs
from twoheads.export.one_file.emit.outputs import add_output
from twoheads.export.one_file.emit.scan import Carried, add_scan
from twoheads.export.one_file.emit.tokenwise import add_tokenwise
from twoheads.export.one_file.emit.values import Values
from twoheads.export.one_file.steps.parts import Body, Parts, with_new
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import TOKENS, AttentionStage, ScanStage, TokenwiseEngine, TokenwiseStage

__all__ = ["blocks_body"]


def blocks_body(graph: Graph, parts: Parts) -> Body:
    """Appends the body for any number of tokens to ``graph``."""
    program, values, body = parts.program, Values(graph, parts.program, parts.lengths), Body()
    add_inputs(graph, program, values, parts.lengths)
    for stage in parts.steps.body.inside:
        if isinstance(stage, TokenwiseStage):
            region = program.engine_of(TokenwiseEngine, stage.engine)
            add_tokenwise(graph, stage, region, values, parts.engines)
        elif isinstance(stage, AttentionStage):
            _attention(graph, parts, stage, values, body)
        elif isinstance(stage, ScanStage):
            carried = Carried(parts.states[stage.name], _counts(graph, parts))
            engine = parts.steps.scan(stage, program.block_size)
            body.states[stage.name] = add_scan(graph, stage, engine, values, parts.engines, carried)
        else:
            raise InternalError(f"stage {stage.name} is of a kind that no file holds")
    body.hidden = values.whole(program.hidden)
    if "logits" in parts.outputs:
        body.logits = add_output(graph, program, "logits", values, parts.lengths, parts.engines)
    return body


def _attention(graph: Graph, parts: Parts, stage: AttentionStage, values: Values, body: Body) -> None:
    lengths = parts.lengths
    keys = with_new(graph, parts, body, stage, values.whole)
    queries = Queries(values.blocks(stage.query), lengths.blocks(TOKENS), lengths.rows(TOKENS), parts.before)
    made = attend(graph, stage, parts.attention(stage), parts.engines, queries, keys)
    values.set_blocks(stage.output.name, made)


def _counts(graph: Graph, parts: Parts) -> str:
    """How many tokens of each block are there, int64 ``[blocks, 1]``."""
    size, lengths = graph.int64(parts.program.block_size), parts.lengths
    numbers = graph.op("Range", graph.int64(0), lengths.blocks(TOKENS), graph.int64(1))
    left = graph.op("Sub", lengths.rows(TOKENS), graph.op("Mul", numbers, size))
    return graph.reshape(graph.op("Min", left, size), -1, 1)
