"""What a vendor's compiler made of a bundle's engines, found by the engine and its stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.program.program import TokenwiseStage
from twoheads.graphs.serialization.bundle_format import TARGETS, Artifact
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime.bundle.artifact_kinds import artifact_problem
from twoheads.runtime.bundle.engine_files.check_engine_file import engine_problem
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["ArtifactFiles", "Artifacts"]


@dataclass(frozen=True, slots=True)
class ArtifactFiles:
    """One engine with its weights, as built.

    Attributes:
        accelerator: The file that the accelerator runs; ``None`` where the host computes everything.
        host: The ONNX file that the host runs before, if any, and the engine's weights that it reads.
        host_weights: Their ports.
        device: For which of the target's devices it was built; ``None`` where there is no choice.
        precision: In what it computes.
    """

    accelerator: Path | None
    host: Path | None
    host_weights: tuple[str, ...]
    device: str | None
    precision: str = "fp32"


class Artifacts:
    """What was built of ``bundle`` for the target ``target``.

    Attributes:
        precision: In what it computes.

    Raises:
        BundleError: An artifact says of itself that it is of another target or device.
        InputError: Nothing was.
    """

    def __init__(self, bundle: Bundle, target: str) -> None:
        entry = bundle.manifest.targets.get(RelativePath(target))
        if entry is None:
            raise InputError(
                str(bundle.path), f"was not built for {target}", f"twoheads build {bundle.path} --target {target}"
            )
        self.precision = entry.precision
        self._device = entry.device
        self._bundle, self._target = bundle, target
        self._folder = bundle.path / TARGETS / target
        self._by_name = entry.artifacts
        self._by_stage = {stage: artifact for artifact in entry.artifacts.values() for stage in artifact.stages}
        for name, artifact in entry.artifacts.items():
            files = [bundle.file(f"{TARGETS}/{target}/{file}") for file in artifact.files]
            problem = artifact_problem(target, entry.device, files) if files else None
            if problem is not None:
                fix = "build the bundle again, for this device"
                raise BundleError(str(self._folder / name), problem, fix)

    def of_stage(self, stage: TokenwiseStage, name: str = "") -> ArtifactFiles:
        """The artifact of a token-wise stage's engine and weights.

        Args:
            stage: Which.
            name: What artifacts call it, if not as the program.

        Raises:
            BundleError: There is none, or it is none of ours.
        """
        return self._files(self._by_stage.get(name or stage.name), f"stage {stage.name}")

    def has_stage(self, stage: TokenwiseStage) -> bool:
        """Whether there is one for the stage of that name."""
        return stage.name in self._by_stage

    def of_attention(self, engine: str, variant: str) -> ArtifactFiles:
        """The artifact of a variant of an attention engine.

        Raises:
            BundleError: There is none, or it is none of ours.
        """
        return self._files(self._by_name.get(f"{engine}.{variant}"), f"{engine}.{variant}")

    def holds(self, engine: str, variant: str) -> bool:
        """Whether there is one: not every variant of an engine can be computed in every precision."""
        return f"{engine}.{variant}" in self._by_name

    def _files(self, artifact: Artifact | None, what: str) -> ArtifactFiles:
        if artifact is None:
            raise BundleError(str(self._folder), f"holds nothing for {what}", "build the bundle again")
        host = artifact.host
        return ArtifactFiles(
            self._file(artifact.files[0], runs_here=self._target == "onnxruntime") if artifact.files else None,
            None if host is None else self._file(host.file, runs_here=True),
            () if host is None else host.weights,
            self._device,
            self.precision,
        )

    def _file(self, name: RelativePath, *, runs_here: bool) -> Path:
        """A file of the target; one that ONNX Runtime opens must be such as our emitters write."""
        path = self._bundle.file(f"{TARGETS}/{self._target}/{name}")
        problem = engine_problem(path.read_bytes()) if runs_here else None
        if problem is not None:
            raise BundleError(str(path), problem, "build the bundle again")
        return path
