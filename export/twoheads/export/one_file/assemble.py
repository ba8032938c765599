"""A bundle's program as one ONNX model of any length; see the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from twoheads.export.one_file.emit.attention import add_attention
from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph, declared, file_facts, finished_model, names_read
from twoheads.export.one_file.emit.inputs import add_inputs
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.emit.outputs import add_output, output_shape
from twoheads.export.one_file.emit.scan import add_scan
from twoheads.export.one_file.emit.sequence import add_sequence
from twoheads.export.one_file.emit.tokenwise import add_tokenwise
from twoheads.export.one_file.emit.values import Values
from twoheads.export.one_file.refuse import needed_body
from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    ScanEngine,
    ScanStage,
    SequenceStage,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["OneFile"]


class OneFile:
    """A model that lacks its weights.

    Args:
        bundle: Whose program; :func:`~twoheads.export.one_file.refuse.check_exportable` has let it pass.
        outputs: What the model gives, by name.
        key_tile: Keys of one attention call, a multiple of the block size.

    Raises:
        CompileError: An operator of an engine has no form in the file's operator set.
    """

    def __init__(self, bundle: Bundle, outputs: tuple[str, ...], key_tile: int) -> None:
        self._bundle = bundle
        self._outputs = outputs
        self._program = program = with_key_tile(bundle.program, key_tile)
        self._graph = Graph()
        self._engines = Engines(bundle, self._graph.shared)
        self._lengths = Lengths(self._graph, program)
        self._values = Values(self._graph, program, self._lengths)
        add_inputs(self._graph, program, self._values, self._lengths)
        for stage in needed_body(program, outputs):
            _STAGES.of(stage)(self, stage)
        results = [
            add_output(self._graph, program, output, self._values, self._lengths, self._engines) for output in outputs
        ]
        for output, result in zip(outputs, results, strict=True):
            self._graph.nodes.append(helper.make_node("Identity", [result], [output], f"output_{output}"))

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the bundle's weights that the model reads, in the program's order."""
        read = set(names_read(self._graph.nodes))
        return tuple(name for name in self._program.weights() if name in read)

    def model(self, weights: Sequence[TensorProto]) -> onnx.ModelProto:
        """The finished model, with initializers for its :attr:`weights`."""
        program = self._program
        arguments = [entry.value for entry in program.inputs if entry.source == "argument"]
        return finished_model(
            self._graph,
            program.name,
            [declared(value.name, value.dtype, value.shape) for value in arguments],
            [declared(output, "float32", output_shape(program, output)) for output in self._outputs],
            weights,
            file_facts(self._bundle, program),
        )

    def add_sequence(self, stage: SequenceStage) -> None:
        """Appends rows that move."""
        add_sequence(self._graph, stage, self._values, self._lengths)

    def add_attention(self, stage: AttentionStage) -> None:
        """Appends an attention."""
        engine = self._program.engine_of(AttentionEngine, stage.engine)
        add_attention(self._graph, stage, engine, self._values, self._lengths, self._engines)

    def add_scan(self, stage: ScanStage) -> None:
        """Appends a scan."""
        engine = self._program.engine_of(ScanEngine, stage.engine)
        add_scan(self._graph, stage, engine, self._values, self._engines)

    def add_tokenwise(self, stage: TokenwiseStage) -> None:
        """Appends a region."""
        engine = self._program.engine_of(TokenwiseEngine, stage.engine)
        add_tokenwise(self._graph, stage, engine, self._values, self._engines)


_STAGES: ByKind[Callable[[OneFile, Any], None]] = ByKind(
    "one file",
    {
        TokenwiseStage: OneFile.add_tokenwise,
        AttentionStage: OneFile.add_attention,
        ScanStage: OneFile.add_scan,
        SequenceStage: OneFile.add_sequence,
    },
)
