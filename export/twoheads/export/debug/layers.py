"""Engines layer by layer: every value between two nodes, as one backend and another compute it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from twoheads.export.bundle.writer import write_json
from twoheads.export.debug.evaluators import Arrays, Evaluator
from twoheads.export.debug.graph_cuts import mark_all, node_name
from twoheads.export.engines.jobs import EngineJob, engine_jobs, engine_model, random_inputs
from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.progress import Progress, silent
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.json_codec import finite_numbers, to_json
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["TOLERANCE", "EngineLayers", "Layer", "check_polygraphy", "compare_layers", "selected_jobs"]

TOLERANCE = 1e-4
"""Of float32. Correct backends differ by 1.3e-5 in a logarithm near zero, and by 3e-6 in everything else."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One value: the node that computes it, and its :func:`~twoheads.export.engines.tensor_error.relative_error`."""

    node: str
    operator: str
    value: str
    error: float


@dataclass(frozen=True, slots=True)
class EngineLayers:
    """An engine on two backends.

    Attributes:
        engine: The name of its :class:`EngineJob`.
        stages: Who calls it; empty for attention.
        inputs: ``recorded`` from a run, or ``random``.
        nodes: How many it has.
        error: The largest of its outputs, computed as in a run. What follows is of the engine with every value among
            its outputs, which keeps a backend from fusing operators.
        first: The first value in the order of the nodes whose error is above the tolerance.
        worst: The value with the largest error.
        layers: All values, in the order of the nodes.
    """

    engine: str
    stages: tuple[str, ...]
    inputs: str
    nodes: int
    error: float
    first: Layer | None
    worst: Layer
    layers: tuple[Layer, ...]


def selected_jobs(bundle: Bundle, names: Sequence[str] = (), *, half: bool = False) -> tuple[EngineJob, ...]:
    """The engines called ``names``; without names, every engine with the weights of its first stage.

    A name is that of an artifact (``tokenwise_1.3``, ``attention_0.full``), of a stage that has weights, or of an
    engine: all its variants, or it with its first weights. Where ``half``, variants that need float32's range are left
    out unless they are named.

    Raises:
        InputError: There is no such engine.
    """
    every, first = engine_jobs(bundle), engine_jobs(bundle, once=True, half=half)
    if not names:
        return first
    chosen: dict[str, EngineJob] = {}
    for name in names:
        found = [job for job in every if name == job.name or name in job.stages]
        found = found or [job for job in first if job.file.rpartition("/")[2].partition(".")[0] == name]
        if not found:
            raise InputError("--engine", f"there is no {name!r}", f"use one of: {', '.join(job.name for job in first)}")
        chosen |= {job.name: job for job in found}
    return tuple(chosen.values())


def compare_layers(
    bundle: Bundle,
    jobs: Sequence[EngineJob],
    evaluators: Mapping[str, Evaluator],
    *,
    recorded: Mapping[str, Sequence[Arrays]],
    tolerance: float = TOLERANCE,
    save: Path | None = None,
    progress: Progress | None = None,
) -> tuple[EngineLayers, ...]:
    """Computes every value of ``jobs`` on two backends by Polygraphy's comparator.

    Args:
        bundle: Whose engines.
        jobs: From :func:`selected_jobs`.
        evaluators: The yardstick and what is compared with it, by name.
        recorded: A run's inputs by the job's name, call by call, of which the first counts; an engine that is missing
            gets random ones.
        tolerance: The largest error that is fine, as a share of a value's largest magnitude.
        save: A folder for ``ENGINE/model.onnx`` with all values marked, ``inputs.json`` and ``outputs.json`` as
            Polygraphy's tools read them, and for ``report.json``, which is what is returned.
        progress: Called as ``progress(phase, done, total)``.

    Raises:
        TwoheadsError: A backend can't open an engine.
    """
    report = progress or silent
    found: list[EngineLayers] = []
    for done, job in enumerate(jobs):
        report(f"compare {job.name}", done, len(jobs))
        calls = recorded.get(job.name, ())
        model, inputs = engine_model(bundle, job), calls[0] if calls else random_inputs(job)
        layers = _layers(model, inputs, evaluators, None if save is None else save / job.name)
        want, got = (evaluate(model, inputs) for evaluate in evaluators.values())
        found.append(
            EngineLayers(
                job.name,
                job.stages,
                "recorded" if calls else "random",
                len(model.graph.node),
                max(relative_error(got[name], want[name]) for name in want),
                next((layer for layer in layers if layer.error > tolerance), None),
                max(layers, key=lambda layer: layer.error),
                layers,
            )
        )
    if save is not None:
        write_json(save / "report.json", finite_numbers([to_json(layers) for layers in found]))
    return tuple(found)


def check_polygraphy() -> None:
    """Raises unless Polygraphy can be imported.

    Raises:
        InputError: It can't.
    """
    try:
        import polygraphy  # type: ignore[import-untyped] # noqa: F401
    except ImportError as error:
        raise InputError("--polygraphy", f"can't be imported ({error})", "pip install polygraphy") from error


def _layers(
    model: onnx.ModelProto, inputs: Arrays, evaluators: Mapping[str, Evaluator], save: Path | None
) -> tuple[Layer, ...]:
    from twoheads.export.debug.polygraphy_run import run_all

    want, got = run_all(mark_all(model), inputs, evaluators, save)
    return tuple(
        Layer(node_name(node), node.op_type, value, relative_error(got[value], want[value]))
        for node in model.graph.node
        for value in node.output
        if value
    )
