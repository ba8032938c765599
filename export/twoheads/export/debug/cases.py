"""What is tried on what: an engine in the form in which a backend or a target's compiler gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from twoheads.export.accelerators.compiler_process import find_compiler
from twoheads.export.accelerators.precisions import PRECISIONS
from twoheads.export.accelerators.prepare_engine import prepare_engine
from twoheads.export.accelerators.rewrites.hidden_scores import raise_masks
from twoheads.export.accelerators.target import Target, choose, load_target, target_names
from twoheads.export.debug.evaluators import EVALUATORS, Arrays, Evaluator, find_evaluator
from twoheads.export.debug.graph_cuts import graph_ports
from twoheads.export.debug.isolated import isolated_evaluator
from twoheads.export.debug.oracles import Oracle, compiler_oracle, evaluator_oracle
from twoheads.export.engines.jobs import EngineJob, engine_model, random_inputs
from twoheads.graphs.errors import CompileError, InputError
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["Against", "Case", "engine_case", "file_case", "find_against"]

TOLERANCES = {name: min(precision.limit, 2e-1) for name, precision in PRECISIONS.items()}
"""By precision: some times what correct engines of real models differ by, of which those of fp16 reach 8e-3."""


@dataclass(frozen=True, slots=True)
class Against:
    """What engines are tried on.

    Attributes:
        name: As on the command line. title: With version and precision, for people.
        target: Where it is a compiler, for what.
        precision: In what it computes.
        oracle: Says whether a model fails. yardstick: Computes what is expected.
    """

    name: str
    title: str
    target: Target | None
    precision: str
    oracle: Oracle
    yardstick: Evaluator


@dataclass(frozen=True, slots=True)
class Case:
    """A model and inputs to try it with.

    Attributes:
        name: Of the engine or the file.
        callers: The program's stages that call it: regions, or the model's attentions.
        model: As the compiler or backend gets it.
        inputs: Of the model. source: ``recorded`` from a run, ``random`` or ``given``.
    """

    name: str
    callers: tuple[str, ...]
    model: onnx.ModelProto
    inputs: Arrays
    source: str


def find_against(
    name: str,
    *,
    precision: str | None = None,
    device: str | None = None,
    python: Path | None = None,
    tolerance: float | None = None,
) -> Against:
    """The backend or, by a target's name, the compiler called ``name``.

    Args:
        name: One of :data:`EVALUATORS`, or of a target of ``twoheads build``; ``openvino`` is the backend.
        precision: Of a target; its first if not given.
        device: Of a target; likewise.
        python: Of the environment that has the compiler.
        tolerance: The largest relative error that is fine; by precision if not given.

    Raises:
        InputError: There is none, it has no such precision, or it is not installed.
    """
    if name in EVALUATORS:
        if any(option is not None for option in (precision, device, python)):
            raise InputError(
                "--against", f"{name} is a backend", "--precision, --device and --python are for a target's compiler"
            )
        limit = TOLERANCES["fp32"] if tolerance is None else tolerance
        yardstick = find_evaluator("reference" if name == "onnxruntime-plain" else "onnxruntime-plain")
        return Against(name, name, None, "fp32", evaluator_oracle(isolated_evaluator(name), limit), yardstick)
    if name not in target_names():
        choices = ", ".join(dict.fromkeys((*EVALUATORS, *target_names())))
        raise InputError("--against", f"{name!r} is unknown", f"use one of: {choices}")
    target = load_target(name)
    wanted = choose("--precision", precision, target.precisions, name)
    if PRECISIONS[wanted].rounded_weights is not None:
        problem = f"{wanted} is rounded by the ranges of runs over a text, which this command does not make"
        raise InputError("--precision", problem, "debug in fp16, and see with build --check what rounding costs")
    chosen = choose("--device", device, target.devices, name) if device or target.devices else None
    compiler = find_compiler(target, python, chosen)
    limit = TOLERANCES[wanted] if tolerance is None else tolerance
    oracle = compiler_oracle(target, compiler, wanted, chosen, limit)
    title = f"{name} ({compiler.name} {compiler.version}, {wanted})"
    return Against(name, title, target, wanted, oracle, find_evaluator("onnxruntime-plain"))


def engine_case(
    bundle: Bundle, job: EngineJob, against: Against, recorded: Mapping[str, Sequence[Arrays]]
) -> Case | None:
    """The engine of ``job`` as ``against`` gets it; ``None`` where its host computes all of it.

    Raises:
        CompileError: The engine can't be brought into the form that the compiler reads.
    """
    calls = recorded.get(job.name, ())
    model, inputs = engine_model(bundle, job), calls[0] if calls else random_inputs(job)
    if against.target is not None:
        try:
            parts = prepare_engine(model, against.target, against.precision, job.name, job.stock, job.scores)
        except RuntimeError as error:  # what the converter of operator sets raises
            problem = f"operator set above {against.target.highest_opset}: {error}"
            raise CompileError(job.name, problem, "export the model with an older operator set") from error
        if parts.accelerator is None:
            return None
        if parts.host is not None:
            inputs = {**inputs, **find_evaluator("onnxruntime-plain")(parts.host, inputs)}
        model = parts.accelerator
        if against.precision == "int8" and against.target.hidden_score is not None:
            inputs = raise_masks(dict(inputs), against.target.hidden_score)
    return Case(job.name, _callers(bundle, job), model, inputs, "recorded" if calls else "random")


def _callers(bundle: Bundle, job: EngineJob) -> tuple[str, ...]:
    engine = job.file.rpartition("/")[2].partition(".")[0]
    stages = (stage for stage in bundle.program.body if not stage.on_host)
    return job.stages or tuple(stage.name for stage in stages if stage.engine == engine)


def file_case(path: Path, inputs: Path | None) -> Case:
    """The ONNX file ``path`` of fixed shapes as it is, with the arrays of the ``.npz`` file ``inputs``, or random ones.

    Raises:
        InputError: A file can't be read, or an input is missing or of another shape.
    """
    try:
        model = onnx.load(path)
        given = {} if inputs is None else dict(np.load(inputs, allow_pickle=False))
    except Exception as error:  # noqa: BLE001 - protobuf's and NumPy's share no base class
        raise InputError(
            str(path), f"can't be read: {error}", "give an ONNX file, and inputs as numpy.savez writes"
        ) from None
    ports = graph_ports(model)[0]
    if inputs is None:
        given = random_inputs(EngineJob(path.stem, "", path.stem, path.name, (), {}, ports, (), {}))
    for port in ports:
        if port.name not in given or given[port.name].shape != port.shape:
            raise InputError(str(inputs), f"has no array {port.name!r} of shape {list(port.shape)}", "give every input")
    return Case(path.name, (), model, given, "random" if inputs is None else "given")
