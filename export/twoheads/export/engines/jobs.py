"""What a compiler for an accelerator has to build for a bundle: every engine file with every set of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.engines.scan_operators import SIGNS
from twoheads.graphs.program.program import (
    AttentionEngine,
    Port,
    Program,
    StockEngine,
    TokenwiseEngine,
    TokenwiseStage,
)
from twoheads.graphs.serialization.bundle_format import ENGINES, FULL_PRECISION
from twoheads.graphs.variants.built.built_steps import BUILT_ROWS, built_stages, built_steps
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.stage_run import MASK
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.execution.engine_pool import EngineKey

__all__ = [
    "WIDE_VARIANTS",
    "EngineJob",
    "engine_file_model",
    "engine_jobs",
    "engine_model",
    "random_inputs",
    "step_jobs",
]

WIDE_VARIANTS = frozenset({*AttentionEngine.ADD_VARIANTS, *AttentionEngine.PACKED_VARIANTS})
"""Sums relative to an anchor reach 1e12, codes of requests 2^40: half precision ends at 65,504."""


@dataclass(frozen=True, slots=True)
class EngineJob:
    """One thing to build: an engine file and, where it has any, the weights to build in.

    Attributes:
        engine, variant: What it is of the program; the variant is of attention.
        name: Of the artifact: the file's name without its suffix, and where an engine serves several sets of weights
            the number of the set, ``tokenwise_1.0``.
        file: The engine's file in the bundle, ``engines/tokenwise_1.onnx``.
        stages: The names of the stages that call it; empty for attention, whose engines have no weights.
        weights: The names of the bundle's weights, by the engine's port.
        inputs, outputs: Its ports.
        limits: For inputs of whole numbers that are arguments of the model, how many there are.
        stock: It is a stock engine of this head size and value size, whose ports have synthetic columns behind them.
        scores: Ports of weights that the head reads.
    """

    engine: str
    variant: str
    name: str
    file: str
    stages: tuple[str, ...]
    weights: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    limits: Mapping[str, int]
    stock: tuple[int, int] | None = None
    scores: frozenset[str] = frozenset()

    @property
    def key(self) -> EngineKey:
        """What a run calls this engine with these weights, when it is open."""
        return self.engine, self.variant, tuple(self.weights.values())


def engine_jobs(bundle: Bundle, *, once: bool = False, half: bool = False) -> tuple[EngineJob, ...]:
    """Everything to build, in the order of the program's engines; then those that hold several of its stages.

    Args:
        bundle: The bundle.
        once: Every engine with the weights of its first stage only: enough to see whether a compiler takes it.
        half: Without the variants that need the range of float32. A bundle runs without them: rows of tiles are merged
            instead of added up, and inputs share no blocks by codes.

    Raises:
        InputError: It is of a lower precision than float32.
    """
    if bundle.manifest.dtype != FULL_PRECISION:
        raise InputError(
            str(bundle.path),
            f"has {bundle.manifest.dtype} values, and what a compiler gets begins with float32",
            "compile without --dtype; build --precision chooses what an accelerator computes in",
        )
    if bundle.manifest.quantised:
        raise InputError(
            str(bundle.path),
            f"has weights of few bits ({bundle.manifest.weight_dtype}), in a form that ONNX Runtime alone reads",
            "compile without --weights",
        )
    jobs: list[EngineJob] = []
    bindings = tuple(bundle.program.bindings)
    for engine in bundle.program.engines:
        if isinstance(engine, TokenwiseEngine):
            jobs += _tokenwise_jobs(bundle, bundle.program, engine, bindings, once=once)
            continue
        for variant in _variants(bundle, engine.name):
            if half and variant in WIDE_VARIANTS:
                continue
            inputs, outputs = engine.ports(variant)
            name = f"{engine.name}.{variant}"
            file = bundle.engine_file(engine.name, variant)
            stock = (engine.head_dim, engine.v_head_dim) if isinstance(engine, StockEngine) else None
            jobs.append(EngineJob(engine.name, variant, name, file, (), {}, inputs, outputs, {}, stock))
    for steps, fused in fused_steps(bundle.program, bundle.manifest.lowering):
        jobs += _tokenwise_jobs(bundle, steps, fused, tuple(steps.bindings), once=once)
    return tuple(jobs)


def step_jobs(bundle: Bundle, *, once: bool = False) -> tuple[EngineJob, ...]:
    """What extends a sequence beside runs of whole blocks; see :mod:`twoheads.graphs.variants.built.built_steps`.

    Args:
        bundle: The bundle, which :func:`engine_jobs` takes.
        once: As there.

    Raises:
        InputError: The bundle generates nothing, or not on accelerators.
    """
    steps = built_steps(bundle.program)
    if steps is None:
        problem = "is extended on no accelerator: something else than attention to its own tokens joins them"
        raise InputError(f"--generation: {bundle.program.name}", problem, "leave out --generation")
    bindings = tuple(built_stages(steps))
    engines = {engine.name: engine for _, engine in bindings}
    if not all(bundle.has(bundle.engine_file(name)) for name in engines):
        problem = "holds no engines that extend a sequence"
        raise InputError(f"--generation: {bundle.path}", problem, "compile the model without --no-generation")
    jobs: list[EngineJob] = []
    for engine in engines.values():
        jobs += _tokenwise_jobs(bundle, steps.program, engine, bindings, once=once)
    for tile, variants in steps.tiles(BUILT_ROWS).items():
        for variant in variants:
            name = f"{tile.name}.{variant}"
            ports = tile.ports(variant)
            jobs.append(EngineJob(tile.name, variant, name, f"{ENGINES}/{name}.onnx", (), {}, *ports, {}))
    return tuple(jobs)


def _variants(bundle: Bundle, engine: str) -> list[str]:
    """The variants of an attention engine that the bundle holds, whatever variants there are."""
    prefix, suffix = f"{ENGINES}/{engine}.", ".onnx"
    names = (name for name in bundle.manifest.files if name.startswith(prefix) and name.endswith(suffix))
    return sorted(name[len(prefix) : -len(suffix)] for name in names)


def _tokenwise_jobs(
    bundle: Bundle,
    program: Program,
    engine: TokenwiseEngine,
    bindings: Sequence[tuple[TokenwiseStage, TokenwiseEngine]],
    *,
    once: bool,
) -> list[EngineJob]:
    sets: dict[tuple[str, ...], list[TokenwiseStage]] = {}
    for stage, used in bindings:
        if used.name == engine.name:
            sets.setdefault(stage.weights, []).append(stage)
    arguments = {entry.value.name: entry.limit for entry in program.inputs}
    head = {name for stage in program.head for name in stage.weights}
    jobs: list[EngineJob] = []
    for number, (weights, stages) in enumerate(sets.items()):
        limits = {
            port.name: limit
            for port, value in zip(engine.inputs, stages[0].operands, strict=True)
            if (limit := arguments.get(value)) is not None
        }
        jobs.append(
            EngineJob(
                engine.name,
                "",
                f"{engine.name}.{number}" if len(sets) > 1 else engine.name,
                bundle.engine_file(engine.name),
                tuple(stage.name for stage in stages),
                {port.name: name for port, name in zip(engine.weights, weights, strict=True)},
                engine.inputs,
                engine.outputs,
                limits,
                scores=frozenset(port.name for port, name in zip(engine.weights, weights, strict=True) if name in head),
            )
        )
    return jobs[:1] if once else jobs


def engine_file_model(bundle: Bundle, job: EngineJob) -> onnx.ModelProto:
    """The engine as it lies in the bundle: its weights refer to the bundle's file."""
    return onnx.load(bundle.file(job.file), load_external_data=False)


def engine_model(bundle: Bundle, job: EngineJob) -> onnx.ModelProto:
    """The engine with its weights inside: a file that any compiler opens.

    Raises:
        InternalError: The file has no initializer for a weight.
    """
    model = engine_file_model(bundle, job)
    weights = bundle.open_weights()
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for port, name in job.weights.items():
        if port not in initializers:
            raise InternalError(f"{job.file} has no initializer {port!r}")
        initializers[port].CopyFrom(numpy_helper.from_array(weights.view(name), port))
    return model


def random_inputs(job: EngineJob) -> dict[str, npt.NDArray[Any]]:
    """Values like those of a run: normal numbers, tokens, a mask of 0 and ``-inf``, sums and decays of their sign."""
    random = np.random.default_rng(0)
    return {port.name: _random_values(port, job.limits.get(port.name), random) for port in job.inputs}


def _random_values(port: Port, limit: int | None, random: np.random.Generator) -> npt.NDArray[Any]:
    if np.dtype(port.dtype).kind != "f":
        return random.integers(0, limit or 2, port.shape).astype(port.dtype)
    if port.name == "mask" or port.name.startswith(MASK):
        rows, columns = port.shape[-2:]
        seen = np.tri(rows, columns, dtype=bool)
        return np.broadcast_to(np.where(seen, 0, -np.inf), port.shape).astype(port.dtype)
    values = random.standard_normal(port.shape)
    if port.name in SIGNS:
        values = SIGNS[port.name] * np.abs(values)
    return (np.abs(values) + 1 if port.name == "prev_weight" else values).astype(port.dtype)
