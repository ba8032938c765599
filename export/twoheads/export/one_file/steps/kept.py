"""What a sequence keeps, as inputs and outputs of the file: keys and values by layer, states by scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from twoheads.export.one_file.emit.graph import Graph, declared
from twoheads.graphs.program.program import TOKENS, AttentionStage, Value
from twoheads.graphs.variants.steps import Steps

__all__ = ["BEFORE", "KeptTiles", "kept_declarations", "kept_ports", "state_ports"]

BEFORE = "p"
"""The axis of tokens that are kept, in the file's declarations."""


def kept_ports(steps: Steps) -> Mapping[str, tuple[str, str]]:
    """Of every value that is kept, in order, the names of its input and its output.

    Layers are counted by what they keep: where several read the same keys these are kept once. The names are those
    that Optimum gives to such files.
    """
    names: dict[str, tuple[str, str]] = {}
    layers = 0
    for stage in steps.body.inside:
        if not isinstance(stage, AttentionStage):
            continue
        new = {role: name for name, role in ((stage.value, "value"), (stage.key, "key")) if name not in names}
        for role, name in sorted(new.items()):
            names[name] = (f"past_key_values.{layers}.{role}", f"present.{layers}.{role}")
        layers += bool(new)
    return names


def state_ports(steps: Steps) -> Mapping[str, tuple[str, str]]:
    """Of every scan, by the stage's name, the names of its state as an input and as an output."""
    return {stage.name: (f"past_states.{at}", f"present_states.{at}") for at, (stage, _) in enumerate(steps.body.scans)}


def kept_declarations(steps: Steps) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The inputs and outputs of all that is kept."""
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    for name, (past, present) in kept_ports(steps).items():
        value = steps.program.value(name)
        inputs.append(declared(past, value.dtype, _shape(value, BEFORE)))
        outputs.append(declared(present, value.dtype, _shape(value, f"{BEFORE}+{TOKENS}")))
    for (past, present), port in zip(state_ports(steps).values(), steps.states, strict=True):
        inputs.append(declared(past, port.dtype, port.shape))
        outputs.append(declared(present, port.dtype, port.shape))
    return inputs, outputs


def _shape(value: Value, axis: str) -> list[int | str]:
    return [axis if isinstance(dim, str) else dim for dim in value.shape]


@dataclass(frozen=True, slots=True)
class KeptTiles:
    """Keys and values of all tokens, those before and the new ones, cut into tiles when they are read.

    Attributes:
        key, value: ``[1, kv_heads, rows, ...]``.
        rows: How many.
        count: Tiles that hold them.
        width: Rows of a tile.
    """

    key: str
    value: str
    rows: str
    count: str
    width: int

    def tile(self, graph: Graph, number: str, *, whole: bool) -> tuple[str, str]:
        """Rows of zeros stand behind the last ones."""
        size = graph.int64(self.width)
        start = graph.op("Mul", number, size)
        stop = graph.op("Min", graph.op("Add", start, size), self.rows)
        bounds = (graph.vector(start), graph.vector(stop), graph.ints(2))
        key, value = (graph.op("Slice", of, *bounds) for of in (self.key, self.value))
        if whole:
            return key, value
        missing = graph.op("Sub", size, graph.op("Sub", stop, start))
        pads = graph.op("Concat", graph.ints(*[0] * 6), graph.vector(missing), graph.ints(0), axis=0)
        return graph.op("Pad", key, pads), graph.op("Pad", value, pads)
