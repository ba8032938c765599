"""The body for a single token: every stage at one row, attention once over all tiles."""

from __future__ import annotations

from dataclasses import replace

from twoheads.export.one_file.emit.attention import Queries, attend_once
from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.tokenwise import call_once
from twoheads.export.one_file.steps.parts import Body, Parts, with_new
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.scan import STEP
from twoheads.graphs.program.program import (
    COUNTING,
    AttentionStage,
    Input,
    ScanStage,
    TokenwiseStage,
)
from twoheads.graphs.variants.steps import STEP as STEP_NAME

__all__ = ["row_body", "row_logits"]


def row_body(graph: Graph, parts: Parts) -> Body:
    """Appends the body for one token to ``graph``."""
    return _Row(graph, parts).made()


def row_logits(graph: Graph, parts: Parts, hidden: str) -> str:
    """Appends the head on one row of hidden states; its logits ``[1, 1, classes]``."""
    program = parts.steps.program
    known = {program.hidden: hidden}
    for stage, engine in parts.steps.heads(1):
        made = call_once(graph, stage, engine, parts.engines, known)
        known |= {value.name: name for value, name in zip(stage.outputs, made, strict=True)}
    return known[program.logits or ""]


class _Row:
    """The body under construction; values are shaped as one row of them is."""

    def __init__(self, graph: Graph, parts: Parts) -> None:
        self._graph, self._parts = graph, parts
        read = set(parts.steps.body.inputs)
        self._values = {
            entry.value.name: self._input(entry) for entry in parts.program.inputs if entry.value.name in read
        }
        self._body = Body()

    def made(self) -> Body:
        """All stages."""
        for stage in self._parts.steps.body.inside:
            if isinstance(stage, TokenwiseStage):
                self._region(stage)
            elif isinstance(stage, AttentionStage):
                self._attention(stage)
            elif isinstance(stage, ScanStage):
                self._scan(stage)
            else:
                raise InternalError(f"stage {stage.name} is of a kind that no file holds")
        self._body.hidden = self._values[self._parts.program.hidden]
        if "logits" in self._parts.outputs:
            self._body.logits = row_logits(self._graph, self._parts, self._body.hidden)
        return self._body

    def _input(self, entry: Input) -> str:
        graph, shape = self._graph, entry.value.block_shape(1)
        if entry.source == "argument":
            return entry.value.name
        if entry.source in COUNTING:
            place = graph.op("Expand", self._parts.before, graph.ints(*shape))
            return place if entry.value.dtype == "int64" else graph.cast(place, entry.value.dtype)
        return graph.op("Expand", graph.constant(0, entry.value.dtype), graph.ints(*shape))

    def _region(self, stage: TokenwiseStage) -> None:
        engine = self._parts.steps.region(stage, 1)
        made = call_once(self._graph, stage, engine, self._parts.engines, self._values)
        self._values |= {value.name: name for value, name in zip(stage.outputs, made, strict=True)}

    def _attention(self, stage: AttentionStage) -> None:
        graph, parts = self._graph, self._parts
        engine = parts.attention(stage)
        engine = replace(engine, name=f"{STEP_NAME}1_{engine.name}", block_size=1)
        keys = with_new(graph, parts, self._body, stage, self._values.__getitem__)
        queries = Queries(self._values[stage.query], graph.int64(1), graph.int64(1), parts.before)
        self._values[stage.output.name] = attend_once(graph, stage, engine, parts.engines, queries, keys)

    def _scan(self, stage: ScanStage) -> None:
        graph, parts = self._graph, self._parts
        function = parts.engines.scan(parts.steps.scan(stage, 1), STEP)
        given = (*(self._values[name] for name in stage.inputs), *stage.weights, parts.states[stage.name])
        y, following = graph.call(function, *given, graph.ints(1))
        self._values[stage.output.name] = y
        self._body.states[stage.name] = following
