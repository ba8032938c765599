"""The engines of steps as a vendor's compiler built them; see :mod:`twoheads.graphs.variants.built.built_steps`."""

from __future__ import annotations

from collections.abc import Mapping

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.program import AttentionEngine, TokenwiseEngine, TokenwiseStage
from twoheads.graphs.variants.built.built_steps import built_name, built_stages, built_steps
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.backends.protocol import ArtifactBackend, EngineHandle
from twoheads.runtime.bundle.artifacts import Artifacts
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.weights import Weights

__all__ = ["BuiltEngines"]


class BuiltEngines:
    """Opens what was built.

    Args:
        bundle: Whose.
        weights: What the parts that the host computes are bound to.
        backend: What runs it.

    Attributes:
        steps: What the engines compute.
        precision: In what.

    Raises:
        InputError: The model is extended on no accelerator, or nothing that extends it was built.
    """

    def __init__(self, bundle: Bundle, weights: Weights, backend: ArtifactBackend) -> None:
        self._weights, self._backend = weights, backend
        self._artifacts = Artifacts(bundle, backend.target)
        self.precision = self._artifacts.precision
        self.steps = self._checked(bundle)

    def _checked(self, bundle: Bundle) -> Steps:
        steps, where = built_steps(bundle.program), f"backend {self._backend.name}"
        if steps is None:
            problem = "extends no sequence of this model: something else than attention to its own tokens joins them"
            raise InputError(where, problem, "use onnxruntime or openvino")
        if not all(self._artifacts.has_stage(stage) for stage, _ in built_stages(steps)):
            problem = f"has nothing that extends a sequence: {bundle.path} was built for {self._backend.target} without"
            raise InputError(
                where, problem, f"twoheads build {bundle.path} --target {self._backend.target} --generation"
            )
        return steps

    def stage(self, stage: TokenwiseStage, engine: TokenwiseEngine, weights: Mapping[str, Port]) -> EngineHandle:
        """The engine of a token-wise stage; of the ``weights``, by the bundle's name, the host's part reads some.

        Raises:
            BundleError: There is none, or it can't be opened.
        """
        files = self._artifacts.of_stage(stage, built_name(stage))
        read = {
            port.name: self._weights.view(name) for name, port in weights.items() if port.name in files.host_weights
        }
        return self._backend.load_artifact(files, engine.inputs, engine.outputs, read)

    def tile(self, engine: AttentionEngine, variant: str) -> EngineHandle:
        """A variant of an attention.

        Raises:
            BundleError: As :meth:`stage`.
        """
        files = self._artifacts.of_attention(engine.name, variant)
        return self._backend.load_artifact(files, *engine.ports(variant), {})
