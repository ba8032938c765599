"""A bundle's engines through an accelerator's compiler, and what it made into the bundle."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from twoheads.export.accelerators.calibration import Calibration, EngineInputs, calibrate_by, inputs_of, run_on_host
from twoheads.export.accelerators.compiler_process import Compiler, Outcome, find_compiler, run_compiler
from twoheads.export.accelerators.loss import Loss, measure_loss, refuse_loss, refuse_unmeasured
from twoheads.export.accelerators.precisions import LOSSY, PRECISIONS
from twoheads.export.accelerators.prepare_engine import prepare_engine, round_engine
from twoheads.export.accelerators.rewrites.host_part import Parts, split_host_part
from twoheads.export.accelerators.target import Target, choose, load_target
from twoheads.export.accelerators.target_files import artifact_files, link_file, made_files, write_target
from twoheads.export.bundle.signing import SigningKey
from twoheads.export.engines.jobs import (
    EngineJob,
    engine_file_model,
    engine_jobs,
    engine_model,
    step_jobs,
)
from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.progress import Progress, silent
from twoheads.graphs.errors import CompileError, InputError
from twoheads.graphs.scratch import scratch_folder
from twoheads.graphs.serialization.bundle_format import TARGETS, Artifact, HostPart, TargetEntry
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime.backends.emulator import EMULATORS, measures
from twoheads.runtime.bundle.reader import Bundle, read_bundle

__all__ = ["Built", "build_engines", "build_target"]

WORST = 0.5
"""What is off by more than this share of the largest magnitude is no result, whatever the precision."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a compiler made of a bundle's engines.

    Attributes:
        entry: What the manifest says of it: accepted engines only.
        refused: The compiler's messages, by artifact name.
        reused: How many artifacts of an earlier build were kept.
        sizes: Bytes of every artifact.
        loss: What the precision costs the whole model; ``None`` where it costs nothing to speak of, or nothing here can
            run what was built.
    """

    entry: TargetEntry
    refused: dict[str, str]
    reused: int
    sizes: dict[str, int]
    loss: Loss | None = None


@dataclass(frozen=True, slots=True)
class _Build:
    """What one build reads."""

    bundle: Bundle
    target: Target
    compiler: Compiler
    precision: str
    device: str | None
    check: bool
    calibration: Calibration | None
    generation: bool


def build_target(
    path: str | Path,
    name: str,
    *,
    precision: str | None = None,
    device: str | None = None,
    python: Path | None = None,
    calibrate: str | None = None,
    check: bool = False,
    strict: bool = False,
    allow_loss: bool = False,
    generation: bool = False,
    sign: SigningKey | None = None,
    progress: Progress | None = None,
) -> Built:
    """Builds every engine of the bundle in folder ``path`` for the target ``name`` into the bundle.

    The bundle is replaced by one that has ``targets/<name>/``, completely or not at all, and shares other files with
    the old one. What an equal build made is kept.

    Args:
        path: The bundle.
        name: Of a target.
        precision: One of the target's; its first if not given.
        device: One of the target's; its first if not given.
        python: That of the environment with the compiler.
        calibrate: For what is lossy, some thousand words like those to run: for ranges, and its end for the cost.
        check: Also run what was built, where something can, and compare it with ONNX Runtime.
        strict: Fail if anything is left to the host.
        allow_loss: Keep what loses more than 5 % of perplexity, or of hidden states, or nobody knows how much.
        generation: Also what extends a sequence, which holds all weights a second time.
        sign: Signs the bundle, which has no signature otherwise, whatever it had before.
        progress: Called as ``progress(phase, done, total)``.

    Raises:
        BundleError: The bundle is damaged, or the disk refuses.
        CompileError: An engine is refused, a strict build leaves nodes to the host, or more is lost than is allowed.
        InputError: No such target, precision or device; no compiler; or ``calibrate`` is missing, of no use or short.
    """
    bundle, target = read_bundle(path), load_target(name)
    refuse_unmeasured(name, _wanted(target, precision, calibrate), allowed=allow_loss)
    with scratch_folder() as scratch:
        built = build_engines(
            bundle,
            name,
            scratch,
            precision=precision,
            device=device,
            python=python,
            calibrate=calibrate,
            check=check,
            generation=generation,
            progress=progress,
        )
        _refuse(built, name, strict=strict)
        if calibrate is not None:
            (progress or silent)("measure what it costs")
            built = _with_loss(bundle, target, built, scratch, python, calibrate, allowed=allow_loss)
        write_target(bundle, name, built.entry, scratch, sign)
    return built


def _with_loss(
    bundle: Bundle, target: Target, built: Built, scratch: Path, python: Path | None, text: str, *, allowed: bool
) -> Built:
    """With what it costs the model, unless that is too much."""
    compiler = find_compiler(target, python, built.entry.device)
    loss = measure_loss(bundle, target.name, built.entry, scratch, compiler, text)
    refuse_loss(loss, target.name, built.entry.precision, allowed=allowed)
    return replace(built, loss=loss)


def build_engines(
    bundle: Bundle,
    name: str,
    scratch: Path,
    *,
    precision: str | None = None,
    device: str | None = None,
    python: Path | None = None,
    calibrate: str | None = None,
    check: bool = False,
    once: bool = False,
    generation: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Builds the engines of ``bundle`` into the folder ``scratch / name`` and leaves the bundle alone.

    Args:
        bundle: Whose engines.
        name: Of a target.
        scratch: An empty folder.
        precision: As for :func:`build_target`.
        device: As for :func:`build_target`.
        python: As for :func:`build_target`.
        calibrate: As for :func:`build_target`.
        check: As for :func:`build_target`.
        once: Every engine with the weights of its first stage only.
        generation: As for :func:`build_target`.
        progress: As for :func:`build_target`.

    Raises:
        InputError: As for :func:`build_target`.
    """
    report = progress or silent
    target = load_target(name)
    wanted = _wanted(target, precision, calibrate)
    if generation and PRECISIONS[wanted].ranges:
        problem = f"is not built in {wanted}: no run over a text tells what ranges the values of steps have"
        raise InputError("--generation", problem, "build in another precision, or without it")
    chosen = choose("--device", device, target.devices, name) if device or target.devices else None
    report(f"find the compiler of {name}")
    compiler = find_compiler(target, python, chosen)
    calibration = None
    if calibrate is not None and PRECISIONS[wanted].ranges:
        report("record values of runs over the text")
        calibration = calibrate_by(bundle, calibrate)
    checked = (check or _is_always_checked(name, wanted)) and target.emulator is not None
    build = _Build(bundle, target, compiler, wanted, chosen, checked, calibration, generation)
    (scratch / name).mkdir()
    plan = _plan(build, scratch, once=once)
    requests = plan.requests
    report("compile", 0, len(requests))
    outcomes = run_compiler(target, compiler, requests, scratch, lambda done: report("compile", done, len(requests)))
    artifacts, refused = _judge(build, plan, outcomes, scratch / name)
    sizes = {
        job: sum(path.stat().st_size for path in artifact_files(scratch / name, [artifact]))
        for job, artifact in artifacts.items()
    }
    return Built(TargetEntry(compiler.name, compiler.version, wanted, chosen, artifacts), refused, plan.kept, sizes)


def _is_always_checked(name: str, precision: str) -> bool:
    """Whether engines are run unasked: where an emulator is known to garble some, or runs only what a check keeps."""
    backend = measures(name, precision) if precision in LOSSY else None
    return PRECISIONS[precision].rounded_weights is not None or (backend is not None and EMULATORS[backend].checked)


def _wanted(target: Target, precision: str | None, text: str | None) -> str:
    """The precision, which needs a text or none: ranges of random numbers would be no statement about a model's."""
    wanted = choose("--precision", precision, target.precisions, target.name)
    if wanted in LOSSY and text is None:
        needed = f"{target.name} needs to know the ranges of values"
        problem = needed if PRECISIONS[wanted].ranges else "nothing tells what it costs"
        raise InputError(f"--precision {wanted}", problem, "--calibrate FILE, a text like those to run")
    if wanted not in LOSSY and text is not None:
        problem = f"is for precisions that lose something, and {wanted} has no use for it"
        raise InputError("--calibrate", problem, "leave it out")
    return wanted


@dataclass(slots=True)
class _Plan:
    """What there is to do: artifacts that are there already, and for the others requests, by the job's name."""

    made: dict[str, Artifact]
    requests: list[dict[str, Any]]
    jobs: dict[str, tuple[EngineJob, str, HostPart | None]]
    kept: int = 0


def _plan(build: _Build, scratch: Path, *, once: bool) -> _Plan:
    """Links what an earlier build made into place, writes the host's parts, and requests everything else."""
    name = build.target.name
    earlier = build.bundle.manifest.targets.get(RelativePath(name))
    (scratch / "engines").mkdir()
    plan = _Plan({}, [], {})
    for mixture in build.bundle.program.mixtures:
        problem = "gathers tokens by expert: its engines take weights as inputs, which compilers have inside"
        raise InputError(f"stage {mixture.name}", problem, "compile with --experts dense")
    jobs = engine_jobs(build.bundle, once=once, half=PRECISIONS[build.precision].narrow)
    for job in (*jobs, *(step_jobs(build.bundle, once=once) if build.generation else ())):
        model = engine_model(build.bundle, job)
        parts = prepare_engine(model, build.target, build.precision, job.name, job.stock, job.scores)
        fed = inputs_of(build.calibration, job, parts.host, build.target)
        if parts.accelerator is not None:
            parts = Parts(parts.host, round_engine(parts.accelerator, build.target, build.precision, fed.samples))
        content = b"" if parts.accelerator is None else parts.accelerator.SerializeToString(deterministic=True)
        key = _key(build, content + fed.digest())
        host = None if parts.host is None else _write_host_part(build, job, scratch / name)
        former = None if earlier is None else earlier.artifacts.get(job.name)
        if former is not None and former.key == key and (former.error is not None or not build.check):
            for file in former.files:
                link_file(build.bundle.file(f"{TARGETS}/{name}/{file}").resolve(), scratch / name / file)
            plan.made[job.name] = replace(former, host=host)
            plan.kept += 1
        elif parts.accelerator is None:
            plan.made[job.name] = Artifact(key, job.stages, (), 0.0, (), None, host)
        else:
            plan.jobs[job.name] = job, key, host
            plan.requests.append(_request(build, job, model, parts, fed, scratch))
    return plan


def _judge(
    build: _Build, plan: _Plan, outcomes: Mapping[str, Outcome], folder: Path
) -> tuple[dict[str, Artifact], dict[str, str]]:
    """The artifacts, of this build and earlier ones, and why the others are refused; both by the job's name."""
    artifacts, refused = dict(plan.made), dict[str, str]()
    for request in plan.requests:
        job, key, host = plan.jobs[request["name"]]
        outcome = outcomes[job.name]
        error = _error(request) if outcome.error is None and build.check else None
        if outcome.error is not None:
            refused[job.name] = outcome.error
        elif error is not None and not math.isfinite(error):
            refused[job.name] = "its emulator gives values that are not numbers"
        elif error is not None and error > _worst(build.precision):
            refused[job.name] = f"its {build.precision} values are off by {error:.0%} of the largest"
        else:
            made = made_files(folder, job.name)
            artifacts[job.name] = Artifact(key, job.stages, made, outcome.seconds, outcome.off, error, host)
    return artifacts, refused


def _worst(precision: str) -> float:
    """What passes: of whole numbers by QDQ less, since a compiler was seen to garble operators among them."""
    about = PRECISIONS[precision]
    return WORST if about.rounded_weights is None else about.limit


def _write_host_part(build: _Build, job: EngineJob, folder: Path) -> HostPart:
    """The part that the host computes: it refers to the bundle's weights, which are not written a second time."""
    part = split_host_part(engine_file_model(build.bundle, job)).host
    assert part is not None
    path = folder / f"{job.name}.host.onnx"
    path.write_bytes(part.SerializeToString(deterministic=True))
    inside = {tensor.name for tensor in part.graph.initializer}
    return HostPart(RelativePath(path.name), tuple(port for port in job.weights if port in inside))


def _key(build: _Build, content: bytes) -> str:
    """Names everything that an artifact depends on."""
    compilers = files("twoheads.export.accelerators") / "vendors"
    shared = sorted(
        file.name for file in compilers.iterdir() if file.name.endswith(".py") and "build_" not in file.name
    )
    program = b"".join((compilers / name).read_bytes() for name in (f"{build.target.module}.py", *shared))
    facts = (
        f"{build.target.name} {build.compiler.name} {build.compiler.version} {build.precision} {build.device}".encode()
    )
    digest = hashlib.sha256()
    for part in (content, program, facts):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _request(
    build: _Build, job: EngineJob, model: onnx.ModelProto, parts: Parts, fed: EngineInputs, scratch: Path
) -> dict[str, Any]:
    """Writes what the compiler reads; what it must give is what ONNX Runtime makes of the whole engine, ``model``."""
    base = scratch / "engines" / job.name
    assert parts.accelerator is not None
    graph = parts.accelerator.graph
    inputs, *samples = (f"{base}.{part}.npz" for part in ("inputs", *map(str, range(len(fed.samples)))))
    for file, arrays in zip((inputs, *samples), (fed.check, *fed.samples), strict=True):
        _save(file, {port.name: arrays[port.name] for port in graph.input})
    Path(f"{base}.onnx").write_bytes(parts.accelerator.SerializeToString(deterministic=True))
    if build.check:
        values = run_on_host(model, [fed.given])[0]
        _save(f"{base}.expected.npz", {port.name: values[port.name] for port in graph.output})
    return {
        "name": job.name,
        "onnx": f"{base}.onnx",
        "ports": [[port.name for port in ports] for ports in (graph.input, graph.output)],
        "folder": str(scratch / build.target.name),
        "precision": build.precision,
        "device": build.device,
        "inputs": inputs,
        "samples": samples,
        "outputs": f"{base}.outputs.npz" if build.check else None,
        "log": f"{base}.log",
    }


def _save(file: str, arrays: dict[str, Any]) -> None:
    np.savez(file, **arrays)


def _error(request: Mapping[str, Any]) -> float:
    """The largest distance from ONNX Runtime's results, as a share of the largest magnitude of that output."""
    with (
        np.load(request["outputs"]) as found,
        np.load(request["outputs"].replace(".outputs.npz", ".expected.npz")) as expected,
    ):
        return max(relative_error(found[name], expected[name]) for name in expected.files)


def _refuse(built: Built, name: str, *, strict: bool) -> None:
    if built.refused:
        first, message = next(iter(built.refused.items()))
        others = f" ({len(built.refused)} engines are refused)" if len(built.refused) > 1 else ""
        raise CompileError(
            f"target {name}",
            f"{built.entry.compiler} {built.entry.version} refuses {first}: {message}{others}",
            f"see `twoheads lint BUNDLE --target {name}`, or build for another target",
        )
    off = {job: artifact.off for job, artifact in built.entry.artifacts.items() if artifact.off}
    if strict and off:
        first, nodes = next(iter(off.items()))
        raise CompileError(
            f"target {name}",
            f"leaves nodes of {len(off)} engines to the host, of {first}: {', '.join(nodes)}",
            f"leave --strict out; `twoheads lint BUNDLE --target {name}` names remedies",
        )
