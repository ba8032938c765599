"""The graphs of a program's token-wise engines, joined by their ports, with attention of some kind between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import onnx

from twoheads.export.emit.graph_builder import IR_VERSION, OPSET, GraphBuilder, common_opsets
from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, ScanStage, TokenwiseStage
from twoheads.graphs.program.wiring import WIRING, ReadWeight, wiring

__all__ = ["JoinedRegions", "with_sinks"]


def with_sinks(graph: GraphBuilder, engine: AttentionEngine, scores: str, sinks: str, weight: ReadWeight) -> str:
    """Scores with one more column, that of the learned sinks ``sinks``, which has no value."""
    logits = np.asarray(weight(sinks), np.float32)
    column = np.repeat(logits, engine.block_size).reshape(engine.kv_num_heads, -1, 1)
    return graph.node("Concat", scores, graph.array(f"sinks/{sinks}", column), axis=-1)


class JoinedRegions(ABC):
    """A graph under construction. Values keep their program's names, with the port's where they are one.

    Args:
        inside: The stages that it computes, in order.
        engines: The models of the token-wise engines by name, their weights being inputs.
        names: Of the values that are ports, here.
        weights: The names of the weights' ports.
        weight: Reads learned sinks and biases, which become constants.
    """

    def __init__(
        self,
        inside: tuple[TokenwiseStage | AttentionStage | ScanStage, ...],
        engines: Mapping[str, onnx.ModelProto],
        names: Mapping[str, str],
        weights: Mapping[str, str],
        weight: ReadWeight,
    ) -> None:
        self.graph = GraphBuilder()
        self._inside, self._names, self._weights, self._weight = inside, names, weights, weight
        self._engines = {s.engine: engines[s.engine] for s in inside if isinstance(s, TokenwiseStage)}

    def model(self, engine: TokenwiseEngine) -> onnx.ModelProto | None:
        """The finished model, whose inputs are the engine's inputs followed by its weights, all by port name.

        Returns:
            ``None`` where the graphs can't be joined: different or old operator sets, functions or subgraphs.
        """
        opsets = common_opsets(self._engines.values(), OPSET)
        if opsets is None:
            return None
        for stage in self._inside:
            if isinstance(stage, AttentionStage):
                self.attention(stage)
            elif isinstance(stage, ScanStage):
                self.scan(stage)
            else:
                self._region(stage)
        ir_version = max([IR_VERSION, *(model.ir_version for model in self._engines.values())])
        ports = (*engine.inputs, *engine.weights)
        model = self.graph.model(engine.name, ports, engine.outputs, opsets, ir_version)
        onnx.helper.set_model_props(model, {WIRING: wiring(self._inside, self._weight)})
        return model

    @abstractmethod
    def attention(self, stage: AttentionStage) -> None:
        """Appends the operators of an attention, which end in the value that it defines."""

    @abstractmethod
    def scan(self, stage: ScanStage) -> None:
        """Appends the operators of a scan, which end in the value that it defines and in its next state."""

    def add_scan(self, stage: ScanStage, model: onnx.ModelProto, *given: str, state: str) -> None:
        """Appends those of the scan's engine; ``given`` are its ports behind the weights, ``state`` is the next one."""
        ports = (*map(self.name, stage.inputs), *(self._weights[name] for name in stage.weights), *given)
        names = dict(zip((value.name for value in model.graph.input), ports, strict=True))
        made = (self.name(stage.output.name), state)
        names |= dict(zip((value.name for value in model.graph.output), made, strict=True))
        self.graph.join(model.graph, stage.name, names)

    def name(self, value: str) -> str:
        """What a value of the program is called in the graph."""
        return self._names.get(value, f"value/{value}")

    def _region(self, stage: TokenwiseStage) -> None:
        """Appends the operators of a token-wise engine, between the values of ``stage``."""
        model = self._engines[stage.engine].graph
        given = (*map(self.name, stage.inputs), *(self._weights[name] for name in stage.weights))
        names = dict(zip((value.name for value in model.input), given, strict=True))
        written = (self.name(value.name) for value in stage.outputs)
        names |= dict(zip((value.name for value in model.output), written, strict=True))
        self.graph.join(model, stage.name, names)
