"""The graphs of a program's token-wise engines, joined by their ports, with attention of some kind between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.export.emit.tile_attention import IR_VERSION
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.engines.fused import BlockEngine
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program, TokenwiseStage

__all__ = ["JoinedRegions"]


class JoinedRegions(ABC):
    """A graph under construction. Values keep their program's names, with the port's where they are one.

    Args:
        program: Whose stages.
        engines: The models of the token-wise engines by name, their weights being inputs.
        names: Of the values that are ports, here.
    """

    def __init__(self, program: Program, engines: Mapping[str, onnx.ModelProto], names: Mapping[str, str]) -> None:
        self.graph = GraphBuilder()
        self._program = program
        self._engines = engines
        self._names = names

    def name(self, value: str) -> str:
        """What a value of the program is called in the graph."""
        return self._names.get(value, f"value/{value}")

    def add(self, stages: Iterable[TokenwiseStage | AttentionStage]) -> None:
        """Appends the operators of ``stages``."""
        for stage in stages:
            if isinstance(stage, TokenwiseStage):
                self._region(stage)
            else:
                self.attention(stage)

    @abstractmethod
    def attention(self, stage: AttentionStage) -> None:
        """Appends the operators of an attention, which end in the value that it defines."""

    def model(self, engine: BlockEngine, opsets: Mapping[str, int]) -> onnx.ModelProto:
        """The finished model, whose inputs are the engine's inputs followed by its weights, all by port name."""
        ir_version = max([IR_VERSION, *(model.ir_version for model in self._engines.values())])
        return self.graph.model(engine.name, (*engine.inputs, *engine.weights), engine.outputs, opsets, ir_version)

    def attention_engine(self, stage: AttentionStage, tiles: int) -> AttentionEngine:
        """The geometry of ``stage`` with ``tiles`` key tiles of a block's size at once."""
        declared = self._program.engine(stage.engine)
        if not isinstance(declared, AttentionEngine):
            raise InternalError(f"stage {stage.name} has the engine {declared.name}, which is no tile attention")
        return replace(declared, key_tile=tiles * self._program.block_size)

    def _region(self, stage: TokenwiseStage) -> None:
        """The operators of a token-wise engine, between the values of ``stage``."""
        model = self._engines[stage.engine].graph
        declared = [value.name for value in model.input]
        given = (*(self.name(name) for name in stage.inputs), *(f"weights/{name}" for name in stage.weights))
        names = dict(zip(declared, given, strict=True))
        written = (self.name(value.name) for value in stage.outputs)
        names |= dict(zip((value.name for value in model.output), written, strict=True))
        self.graph.join(model, stage.name, names)
