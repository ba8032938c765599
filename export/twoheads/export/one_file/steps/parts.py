"""What both bodies of the file are made of, and what each gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.steps.kept import KeptTiles
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program
from twoheads.graphs.variants.steps import Steps

__all__ = ["Body", "Parts", "with_new"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the bodies read of the graph around them.

    Attributes:
        steps: What they compute.
        program: Its program, with key tiles of the file's width.
        outputs: What the file gives beside what is kept.
        engines: Make the functions.
        lengths: Of the new tokens.
        before: How many tokens are kept, int64 without dimensions.
        rows: How many there are with the new ones.
        past: Of every kept value its rows before, by name.
        states: Of every scan the state before, by the stage's name.
    """

    steps: Steps
    program: Program
    outputs: tuple[str, ...]
    engines: Engines
    lengths: Lengths
    before: str
    rows: str
    past: Mapping[str, str]
    states: Mapping[str, str]

    def attention(self, stage: AttentionStage) -> AttentionEngine:
        """The engine of an attention, as wide as the file's key tiles are."""
        return self.program.engine_of(AttentionEngine, stage.engine)


@dataclass(slots=True)
class Body:
    """What a body gives.

    Attributes:
        hidden: The new tokens' hidden states, shaped as declared.
        logits: Those of all of them, where the file gives these.
        present: Of every kept value its rows before and the new ones, by name.
        states: Of every scan the state behind the last token.
    """

    hidden: str = ""
    logits: str = ""
    present: dict[str, str] = field(default_factory=dict[str, str])
    states: dict[str, str] = field(default_factory=dict[str, str])


def with_new(graph: Graph, parts: Parts, body: Body, stage: AttentionStage, new: Callable[[str], str]) -> KeptTiles:
    """The keys and values of ``stage``: those before, and behind them the ``new`` ones, which ``body`` gives then."""
    for name in (stage.key, stage.value):
        if name not in body.present:
            axis = parts.program.value(name).token_axis
            body.present[name] = graph.op("Concat", parts.past[name], new(name), axis=axis)
    width = parts.attention(stage).key_tile
    above = graph.op("Add", parts.rows, graph.int64(width - 1))
    count = graph.op("Div", above, graph.int64(width))
    return KeptTiles(body.present[stage.key], body.present[stage.value], parts.rows, count, width)
