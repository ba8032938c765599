"""Whether a program can run on the files beside it: names resolve, shapes and dtypes agree, weights are where they say.

A bundle from our writer always passes; one that was edited, or written by someone else's tool, is refused here with
the stage named, and not by a kernel in the middle of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.errors import BundleError
from twoheads.graphs.masks.expressions import Full
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.axes import axis_inputs, parse_axis
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import (
    COUNTING,
    AnyAttention,
    AttentionEngine,
    AttentionStage,
    ExpertsEngine,
    ExpertsStage,
    Port,
    Program,
    ScanEngine,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.program.sequence_check import sequence_problem
from twoheads.graphs.serialization.bundle_format import Manifest
from twoheads.runtime.bundle.engines_check import engines_problem
from twoheads.runtime.bundle.weights_table import DTYPES, weights_problem

__all__ = ["check_program"]


def check_program(program: Program, manifest: Manifest, where: str) -> None:
    """Checks ``program`` against itself and against ``manifest``.

    Args:
        program: What is to run.
        manifest: What the bundle holds.
        where: How errors call the program, its path.

    Raises:
        BundleError: Something does not resolve or does not fit; names the stage, engine or weight.
    """
    _Check(program, manifest, where).all()


class _Check:
    def __init__(self, program: Program, manifest: Manifest, where: str) -> None:
        self.program = program
        self.manifest = manifest
        self.where = where
        self.engines = {engine.name: engine for engine in program.engines}
        self.values: dict[str, Value] = {}
        self.given: set[str] | None = None
        """The axes whose lengths an input decides; ``None`` until the inputs are read."""

    def refuse(self, problem: str) -> BundleError:
        return BundleError(self.where, problem, "compile the model again with `twoheads compile`")

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise self.refuse(problem)

    def all(self) -> None:
        program, manifest = self.program, self.manifest
        sizes = (program.block_size, program.key_tile)
        self.require(sizes == (manifest.block_size, manifest.key_tile), f"has tiles {sizes}, the manifest has others")
        self.require(
            program.block_size > 0 and program.key_tile > 0 and program.key_tile % program.block_size == 0,
            f"has key tiles of {program.key_tile} tokens, not a multiple of its blocks of {program.block_size}",
        )
        for found in (weights_problem(manifest), engines_problem(program, manifest)):
            self.require(found is None, str(found))
        for entry in program.inputs:
            self.define(entry.value, "an input")
        self.inputs()
        names = [stage.name for stage in (*program.body, *program.head)]
        self.require(len(set(names)) == len(names), "has two stages of one name")
        for stage in program.body:
            self.stage(stage)
        hidden = self.values.get(program.hidden)
        self.require(hidden is not None and _is_rows(hidden), f"hidden {program.hidden!r} is not a value [1, n, width]")
        self.head()

    def inputs(self) -> None:
        """What the run generates can be generated, and arguments tell every length."""
        for entry in self.program.inputs:
            value, where = entry.value, f"input {entry.value.name}"
            self.require(
                entry.source in ("argument", *COUNTING, "zeros", "length"), f"{where}: source {entry.source!r}"
            )
            self.require(entry.source not in COUNTING or value.axis is not None, f"{where}: positions without an axis")
            whose = entry.axis if entry.source == "length" else None
            fits = entry.source != "length" or (value.dtype, value.shape) == ("int64", (1,))
            self.require(fits and entry.axis == whose, f"{where}: is no length of {entry.axis}")
            self.require(entry.source != "length" or whose is not None, f"{where}: is the length of nothing")
            if whose is not None:
                self.axis(whose, where)
        arguments = [entry for entry in self.program.inputs if entry.source == "argument"]
        told = [entry.value.axis for entry in arguments or self.program.inputs]
        for axis in told:
            plain = axis is None or axis.isdigit() or axis_inputs(axis) == (axis,)
            self.require(plain, f"an argument is on the axis {axis}, which is none of its own")
        given = {axis for axis in told if axis is not None}
        for name in input_axes(self.program):
            self.require(name in given, f"no argument has the axis {name}")
        self.given = given

    def axis(self, axis: str, where: str) -> None:
        try:
            parse_axis(axis)
        except ValueError as error:
            raise self.refuse(f"{where}: {error}") from None

    def head(self) -> None:
        known = {self.program.hidden}
        for stage in self.program.head:
            self.require(set(stage.inputs) <= known, f"head stage {stage.name}: reads more than the hidden states")
            self.stage(stage)
            known.update(value.name for value in stage.outputs)
        if self.program.logits is None:
            return
        logits = self.values.get(self.program.logits)
        if logits is not None and logits.axis is None:
            pooled = prod(logits.block_shape(1)[:-1]) == 1 and not self.program.head
            self.require(pooled, f"logits {self.program.logits!r} are not one row of the body")
            return
        from_head = self.program.logits in known - {self.program.hidden}
        self.require(
            logits is not None and from_head and _is_rows(logits),
            f"logits {self.program.logits!r} is not a head value [1, n, classes] or a row of the body",
        )

    def define(self, value: Value, where: str) -> None:
        self.require(value.name not in self.values, f"defines {value.name!r} twice")
        axes = [dim for dim in value.shape if isinstance(dim, str)]
        self.require(
            len(axes) <= 1 and value.dtype in DTYPES and all(dim > 0 for dim in value.block_shape(1)),
            f"{where}: value {value.name!r} is {value.dtype}{list(value.shape)}, expected at most one axis",
        )
        for axis in axes:
            self.axis(axis, f"{where}: value {value.name!r}")
            unknown = set(axis_inputs(axis)) - self.given if self.given is not None else set[str]()
            self.require(not unknown, f"{where}: no input has the axis {', '.join(sorted(unknown))} of {value.name!r}")
        self.values[value.name] = value

    def stage(self, stage: Stage) -> None:
        _STAGES.of(stage)(self, stage)

    def sequence(self, stage: SequenceStage) -> None:
        inputs = [self.value(stage.name, name) for name in stage.inputs]
        self.define(stage.output, f"stage {stage.name}")
        problem = sequence_problem(stage, inputs)
        self.require(problem is None, f"stage {stage.name}: {problem}")

    def other_kind(self, stage: Stage) -> BundleError:
        return self.refuse(f"stage {stage.name}: engine {stage.engine!r} is missing or of another kind")

    def tokenwise(self, stage: TokenwiseStage) -> None:
        engine = self.engines.get(stage.engine)
        if not isinstance(engine, TokenwiseEngine):
            raise self.other_kind(stage)
        self.fit(stage.name, tuple(self.value(stage.name, name) for name in stage.inputs), engine.inputs)
        for value in stage.outputs:
            self.define(value, f"stage {stage.name}")
        self.fit(stage.name, stage.outputs, engine.outputs)
        axes = {value.axis for value in stage.outputs} | {self.values[name].axis for name in stage.inputs}
        self.require(len(axes - {None}) <= 1, f"stage {stage.name}: mixes the axes {sorted(axes - {None}, key=str)}")
        mixed = axes != {None} and any(value.axis is None for value in stage.outputs)
        self.require(not mixed, f"stage {stage.name}: a token-wise stage makes one row of all tokens")
        self.bound(stage.name, stage.weights, engine.weights)

    def scan(self, stage: ScanStage) -> None:
        engine = self.engines.get(stage.engine)
        if not isinstance(engine, ScanEngine):
            raise self.other_kind(stage)
        inputs = tuple(self.value(stage.name, name) for name in stage.inputs)
        self.define(stage.output, f"stage {stage.name}")
        self.fit(stage.name, (*inputs, stage.output), (*engine.tokens, engine.output))
        # The other dimensions fit the ports, so that the axis is where the ports have their rows.
        axes = {value.axis for value in (*inputs, stage.output)}
        self.require(len(axes) == 1 and None not in axes, f"stage {stage.name}: a scan is along one axis")
        self.bound(stage.name, stage.weights, engine.weight_ports)

    def experts(self, stage: ExpertsStage) -> None:
        engine = self.engines.get(stage.engine)
        if not isinstance(engine, ExpertsEngine):
            raise self.other_kind(stage)
        inputs = tuple(self.value(stage.name, name) for name in stage.inputs)
        self.define(stage.output, f"stage {stage.name}")
        widths = (engine.width, engine.chosen, engine.chosen, engine.width)
        dtypes = (engine.dtype, "int64", engine.dtype, engine.dtype)
        for value, width, dtype in zip((*inputs, stage.output), widths, dtypes, strict=True):
            shape = value.block_shape(self.program.block_size)
            fits = value.dtype == dtype and shape[-2:] == (self.program.block_size, width) and prod(shape[:-2]) == 1
            self.require(
                fits and isinstance(value.shape[-2], str),
                f"stage {stage.name}: {value.name!r} is {value.dtype}{list(value.shape)}, its engine takes "
                f"{dtype} rows of {width}",
            )
        axes = {value.axis for value in (*inputs, stage.output)}
        self.require(len(axes) == 1, f"stage {stage.name}: a mixture of experts is along one axis")
        self.bound(stage.name, stage.weights, engine.weight_ports)

    def bound(self, stage: str, weights: tuple[str, ...], ports: tuple[Port, ...]) -> None:
        self.require(len(weights) == len(ports), f"stage {stage}: wrong number of weights")
        for name, port in zip(weights, ports, strict=True):
            self.weight(stage, name, port.dtype, port.shape)

    def attention(self, stage: AttentionStage) -> None:
        engine = self.engines.get(stage.engine)
        if not isinstance(engine, AnyAttention):
            raise self.other_kind(stage)
        q, k, v = (self.value(stage.name, name) for name in (stage.query, stage.key, stage.value))
        self.define(stage.output, f"stage {stage.name}")
        heads, groups, keys = engine.q_num_heads, engine.kv_num_heads, engine.key_tile
        block = self.program.block_size
        tiled = engine.kind == "attention"
        out = "float32" if tiled else engine.dtype
        for value, dtype, name, shape, tokens in (
            (q, engine.dtype, "q", (1, heads, block, engine.head_dim), block),
            (k, engine.dtype, "k", (1, groups, keys, engine.head_dim), keys),
            (v, engine.dtype, "v", (1, groups, keys, engine.v_head_dim), keys),
            (stage.output, out, "out", (1, heads, block, engine.v_head_dim), block),
        ):
            self.agree(stage.name, value, Port(name, dtype, shape), tokens)
        self.require(
            (q.axis, k.axis) == (stage.output.axis, v.axis) and None not in (q.axis, k.axis),
            f"stage {stage.name}: queries on {q.axis}, keys on {k.axis}, values on {v.axis} give {stage.output.axis}",
        )
        if q.axis != k.axis:
            takes = tiled and stage.mask == Full()
            self.require(
                takes and stage.bias is None and stage.average is None,
                f"stage {stage.name}: attention from {q.axis} to {k.axis} is full, without a bias, and tiled",
            )
        if stage.average is not None:
            self.require(tiled, f"stage {stage.name}: its engine can't sample keys")
            self.average(stage, stage.average)
        if stage.sinks is not None:
            self.weight(stage.name, stage.sinks, None, (engine.q_num_heads,))
        if stage.bias is not None:
            distances = engine.distances if isinstance(engine, AttentionEngine) else 0
            rows = 1 if distances else engine.q_num_heads
            takes = engine.mask_heads == rows and not (distances and stage.bias.slope)
            self.require(takes, f"stage {stage.name}: its engine takes no such bias")
            if stage.bias.table is not None:
                entry = self.manifest.weights.get(stage.bias.table)
                width = entry.shape[-1] if entry is not None and entry.shape else 0
                self.require(width % 2 == 1, f"stage {stage.name}: bias table {stage.bias.table!r} has no middle")
                self.weight(stage.name, stage.bias.table, None, (rows, width))
            if stage.bias.slope is not None:
                self.weight(stage.name, stage.bias.slope, None, (engine.q_num_heads,))

    def average(self, stage: AttentionStage, average: Average) -> None:
        window = 1 if average.window is None else average.window
        self.require(
            average.samples >= 1 and window >= 1 and average.sinks >= 0 and 0 <= average.seed < 1 << 32,
            f"stage {stage.name}: {average} is out of range",
        )
        self.require(
            Average.applies_to(stage.mask) and stage.bias is None,
            f"stage {stage.name}: keys can be sampled in full or causal attention without a bias only",
        )

    def value(self, stage: str, name: str) -> Value:
        self.require(name in self.values, f"stage {stage}: reads {name!r} before anything defines it")
        return self.values[name]

    def fit(self, stage: str, values: tuple[Value, ...], ports: tuple[Port, ...]) -> None:
        self.require(len(values) == len(ports), f"stage {stage}: {len(values)} values for {len(ports)} ports")
        for value, port in zip(values, ports, strict=True):
            self.agree(stage, value, port, self.program.block_size)

    def agree(self, stage: str, value: Value, port: Port, tokens: int) -> None:
        shape = value.block_shape(tokens)
        self.require(
            value.dtype == port.dtype and shape == port.shape,
            f"stage {stage}: {value.name!r} gives {value.dtype}{list(shape)}, port {port.name} takes "
            f"{port.dtype}{list(port.shape)}",
        )

    def weight(self, stage: str, name: str, dtype: str | None, shape: tuple[int, ...]) -> None:
        entry = self.manifest.declared(name)
        if entry is None:
            raise self.refuse(f"stage {stage}: the bundle has no weight {name!r}")
        self.require(
            entry.shape == shape and entry.dtype == (dtype or entry.dtype),
            f"stage {stage}: weight {name!r} is {entry.dtype}{list(entry.shape)}, expected {dtype or ''}{list(shape)}",
        )


_STAGES: ByKind[Callable[[_Check, Any], None]] = ByKind(
    "program check",
    {
        TokenwiseStage: _Check.tokenwise,
        AttentionStage: _Check.attention,
        SequenceStage: _Check.sequence,
        ScanStage: _Check.scan,
        ExpertsStage: _Check.experts,
    },
)


def _is_rows(value: Value) -> bool:
    return len(value.shape) == 3 and value.shape[0] == 1 and isinstance(value.shape[1], str)
