"""A decoder's steps as one ONNX model; see the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from twoheads.export.one_file.emit.functions import Engines
from twoheads.export.one_file.emit.graph import Graph, declared, file_facts, finished_model, names_read
from twoheads.export.one_file.emit.lengths import Lengths
from twoheads.export.one_file.emit.outputs import output_shape
from twoheads.export.one_file.steps.blocks import blocks_body
from twoheads.export.one_file.steps.kept import kept_declarations, kept_ports, state_ports
from twoheads.export.one_file.steps.parts import Body, Parts
from twoheads.export.one_file.steps.row import row_body, row_logits
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import TOKENS
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.graphs.variants.steps import step_steps
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["StepFile"]


class StepFile:
    """A model that lacks its weights: new tokens and what is kept in, logits and what is kept then out.

    Args:
        bundle: Whose program generates; its engines of one row are among its files.
        outputs: What the model gives beside: ``last``, ``logits``, ``hidden``.
        key_tile: Keys of one attention call.

    Raises:
        CompileError: An operator of an engine has no form in the file's operator set.
    """

    def __init__(self, bundle: Bundle, outputs: tuple[str, ...], key_tile: int) -> None:
        steps = step_steps(bundle.program)
        if steps is None:
            raise InternalError(f"{bundle.path} generates nothing, which was asked before")
        self._bundle, self._outputs, self._steps = bundle, outputs, steps
        self._program = with_key_tile(steps.program, key_tile)
        graph = self._graph = Graph()
        parts = self._parts()
        single = graph.op("Equal", parts.lengths.rows(TOKENS), graph.int64(1))
        one, several = graph.body(), graph.body()
        then = one.proto("one_token", [], self._given(row_body(one, parts)))
        other = several.proto("several_tokens", [], self._given(blocks_body(several, parts)))
        made = graph.ops("If", single, outputs=len(then.output), then_branch=then, else_branch=other)
        for output, result in self._results(parts, made).items():
            graph.nodes.append(helper.make_node("Identity", [result], [output], f"output_{output}"))

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the bundle's weights that the model reads, in the program's order."""
        read = set(names_read(self._graph.nodes))
        return tuple(name for name in self._bundle.program.weights() if name in read)

    def model(self, weights: Sequence[TensorProto]) -> onnx.ModelProto:
        """The finished model, with initializers for its :attr:`weights`."""
        program = self._program
        tokens = self._steps.tokens.value
        past, present = kept_declarations(self._steps)
        return finished_model(
            self._graph,
            program.name,
            [declared(tokens.name, tokens.dtype, tokens.shape), *past],
            [*(declared(output, "float32", output_shape(program, output)) for output in self._outputs), *present],
            weights,
            file_facts(self._bundle, program) | {"twoheads.form": "step"},
        )

    def _parts(self) -> Parts:
        graph, steps = self._graph, self._steps
        past = {name: ports[0] for name, ports in kept_ports(steps).items()}
        first, *others = [(port, self._rows_of(name, port)) for name, port in past.items()] or [("", graph.int64(0))]
        before = first[1]
        lengths = Lengths(graph, self._program, before)
        for port, rows in others:
            off = graph.op("Neg", graph.op("Abs", graph.op("Sub", rows, before)))
            lengths.guard(TOKENS, off, f"input {port} does not have as many rows as {first[0]}")
        total = graph.op("Add", before, lengths.rows(TOKENS))
        states = {name: ports[0] for name, ports in state_ports(steps).items()}
        engines = Engines(self._bundle, graph.shared)
        return Parts(steps, self._program, self._outputs, engines, lengths, before, total, past, states)

    def _rows_of(self, name: str, port: str) -> str:
        graph, at = self._graph, self._program.value(name).token_axis
        return graph.reshape(graph.op("Shape", port, start=at, end=at + 1))

    def _given(self, body: Body) -> list[tuple[str, str]]:
        """What a body gives, with dtypes, in one order for both."""
        program, steps = self._program, self._steps
        given = [(body.hidden, program.value(program.hidden).dtype)]
        given += [(body.logits, "float32")] if "logits" in self._outputs else []
        given += [(body.present[name], program.value(name).dtype) for name in kept_ports(steps)]
        names = zip(state_ports(steps), steps.states, strict=True)
        return [*given, *((body.states[name], port.dtype) for name, port in names)]

    def _results(self, parts: Parts, made: Sequence[str]) -> Mapping[str, str]:
        """The file's outputs, by name."""
        graph, found = self._graph, {"hidden": made[0]}
        rest = list(made[1:])
        if "logits" in self._outputs:
            found["logits"] = rest.pop(0)
        if "last" in self._outputs:
            end = graph.op("Sub", parts.lengths.rows(TOKENS), graph.int64(1))
            axis = self._program.value(self._program.hidden).token_axis
            found["last"] = row_logits(graph, parts, graph.op("Gather", made[0], graph.vector(end), axis=axis))
        outputs = {name: found[name] for name in self._outputs}
        ports = (*kept_ports(self._steps).values(), *state_ports(self._steps).values())
        return outputs | {present: value for (_, present), value in zip(ports, rest, strict=True)}
