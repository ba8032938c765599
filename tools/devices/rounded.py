"""What whole numbers cost before any vendor's arithmetic: the engines as the compiler gets them, on ONNX Runtime.

Qualcomm's emulator takes seconds a call. What it computes is rounded as these models say, and half precision besides.
"""

from __future__ import annotations

from pathlib import Path

from twoheads.export.accelerators.calibration import calibrate_by, inputs_of
from twoheads.export.accelerators.loss import Loss, loss_by
from twoheads.export.accelerators.precisions import PRECISIONS
from twoheads.export.accelerators.prepare_engine import prepare_engine, round_engine
from twoheads.export.accelerators.rewrites.host_part import split_host_part
from twoheads.export.accelerators.target import load_target, target_names
from twoheads.export.engines.jobs import EngineJob, engine_file_model, engine_jobs, engine_model
from twoheads.graphs.scratch import scratch_folder
from twoheads.graphs.serialization.bundle_format import Artifact, HostPart, TargetEntry
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime.backends.emulator import Emulator, EmulatorBackend
from twoheads.runtime.bundle.reader import Bundle, read_bundle

__all__ = ["ROUNDING", "in_models", "rounding_loss"]

ROUNDING = "rounding"
"""What the table calls it."""


def in_models() -> tuple[tuple[str, str], ...]:
    """Every target with each precision whose whole numbers are written into the models that its compiler gets."""
    every = ((name, precision) for name in target_names() for precision in load_target(name).precisions)
    return tuple((name, one) for name, one in every if PRECISIONS[one].rounded_weights is not None)


def rounding_loss(path: Path, target: str, precision: str, text: str) -> Loss:
    """What the bundle in ``path`` loses on the last fifth of ``text``; ranges are taken from the rest of it."""
    bundle = read_bundle(path, check="size")
    calibration = calibrate_by(bundle, text)
    chip = load_target(target)
    with scratch_folder() as scratch:
        folder = scratch / ROUNDING
        folder.mkdir()
        artifacts: dict[str, Artifact] = {}
        for job in engine_jobs(bundle, half=PRECISIONS[precision].narrow):
            parts = prepare_engine(engine_model(bundle, job), chip, precision, job.name, job.stock, job.scores)
            fed = inputs_of(calibration, job, parts.host, chip)
            host = None if parts.host is None else _host(bundle, job, folder)
            files: tuple[RelativePath, ...] = ()
            if parts.accelerator is not None:
                rounded = round_engine(parts.accelerator, chip, precision, fed.samples)
                files = (RelativePath(f"{job.name}.onnx"),)
                (folder / files[0]).write_bytes(rounded.SerializeToString(deterministic=True))
            artifacts[job.name] = Artifact("", job.stages, files, 0.0, (), None, host)
        entry = TargetEntry(ROUNDING, "", precision, None, artifacts)
        runner = Emulator(ROUNDING, "run_onnxruntime", ("onnxruntime",), (precision,))
        return loss_by(EmulatorBackend(ROUNDING, emulator=runner), bundle, entry, scratch, text)


def _host(bundle: Bundle, job: EngineJob, folder: Path) -> HostPart:
    """The part that the host computes, by the bundle's own weights, as a build leaves it."""
    part = split_host_part(engine_file_model(bundle, job)).host
    assert part is not None
    file = RelativePath(f"{job.name}.host.onnx")
    (folder / file).write_bytes(part.SerializeToString(deterministic=True))
    inside = {tensor.name for tensor in part.graph.initializer}
    return HostPart(file, tuple(port for port in job.weights if port in inside))
