"""The original's own results over a whole sequence, with their noise floors: what ``verify`` compares with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress
from twoheads.export.verification.approximation import imposition
from twoheads.export.verification.noise_floor import CUTS, Floor, Floors, pooled
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.program import Pooling
from twoheads.graphs.serialization.bundle_format import WHOLE, SourceIdentity
from twoheads.runtime import LoadedBundle

if TYPE_CHECKING:
    from torch import Tensor, nn

    from twoheads.compiler.frontend.torch.load_source import LoadedSource
    from twoheads.compiler.frontend.torch.operators.impose_attention import Imposition
    from twoheads.compiler.original.onnx_original import OnnxOriginal

__all__ = [
    "AnyOriginal",
    "OriginalResults",
    "Source",
    "by_output",
    "evaluate_original",
    "load_original",
    "run_original",
]

Array: TypeAlias = npt.NDArray[np.float32]

Source: TypeAlias = "str | Path | nn.Module"

AnyOriginal: TypeAlias = "LoadedSource | OnnxOriginal"
"""A source of either front door, ready to be run as it is."""


@dataclass(frozen=True, slots=True)
class OriginalResults:
    """What the fused evaluation of the original gave, with the noise floors; logits at ``positions``.

    ``unmasked`` holds hidden states and logits without the bundle's policy, where it has one.
    """

    hidden: Array
    hidden_floor: Floor
    logits: Array | None
    logits_floor: Floor | None
    embedding: Array | None
    embedding_floor: Floor | None
    seconds: dict[str, float]
    unmasked: tuple[Array, Array | None] | None

    @property
    def rows(self) -> dict[str, Array]:
        """By output, of those that the original has."""
        found = {"hidden": self.hidden, "logits": self.logits, "embedding": self.embedding}
        return {output: rows for output, rows in found.items() if rows is not None}

    @property
    def floors(self) -> dict[str, Floor]:
        """By output."""
        found = {"hidden": self.hidden_floor, "logits": self.logits_floor, "embedding": self.embedding_floor}
        return {output: floor for output, floor in found.items() if floor is not None}


def run_original(
    bundle: LoadedBundle,
    original: AnyOriginal,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    progress: Progress,
) -> OriginalResults:
    """The evaluations of the original; of all but the fused one only the distance is kept, and of the model nothing."""
    pooling = original.pooling
    progress("run the original, fused attention")
    hidden, logits, fused_seconds = evaluate_original(original, given, positions, "fused")
    unmasked = None
    if bundle.manifest.approximations:
        progress("run the original, the bundle's mask")
        unmasked = (hidden, logits)
        hidden, logits, fused_seconds = evaluate_original(original, given, positions, "fused", imposition(bundle))
    progress("run the original, plain attention")
    plain_hidden, plain_logits, plain_seconds = evaluate_original(
        original, given, positions, "plain", imposition(bundle)
    )
    if (logits is None, pooling is None) != (bundle.program.logits is None, bundle.program.pooling is None):
        raise InternalError(f"the original of {bundle.program.name} gives other outputs than its bundle")
    pooled_logits = bundle.program.pooled_logits
    floors = Floors.of((hidden, logits), (plain_hidden, plain_logits), pooling, pooled_logits=pooled_logits)
    if floors.suspect:
        progress("run the original, products cut")
        for cut in CUTS:
            evaluation = evaluate_original(original, given, positions, "plain", imposition(bundle), cut)
            floors = floors.with_evaluation(*evaluation[:2])
    return OriginalResults(
        hidden=hidden,
        hidden_floor=floors.hidden_floor,
        logits=logits,
        logits_floor=floors.final_logits,
        embedding=None if pooling is None else pooled(hidden, pooling),
        embedding_floor=floors.final_embedding,
        seconds={"original": fused_seconds, "original_plain": plain_seconds},
        unmasked=unmasked,
    )


def by_output(hidden: Array, logits: Array | None, pooling: Pooling | None) -> dict[str, Array]:
    """One evaluation's results by output, with the embedding that is made of them."""
    found = {"hidden": hidden, "logits": logits, "embedding": None if pooling is None else pooled(hidden, pooling)}
    return {output: rows for output, rows in found.items() if rows is not None}


def load_original(
    bundle: LoadedBundle,
    source: Source,
    example_inputs: Any,
    results: Sequence[str] = (),
    masks: Mapping[str, str] | None = None,
    *,
    trust_remote_code: bool = False,
    deferred: bool = False,
) -> AnyOriginal:
    """The source that ``bundle`` was compiled from, loaded as ``load_source`` does, which says what ``deferred`` means.

    Raises:
        CompileError: It can't be loaded.
        InputError: The bundle was compiled from something else, or it is an ONNX file and the bundle approximate.
    """
    found: AnyOriginal
    if isinstance(source, str | Path) and Path(source).suffix == ".onnx":
        found = _load_file(bundle, source, results, masks)
    else:
        found = _load(bundle, source, example_inputs, trust=trust_remote_code, deferred=deferred)
    _check_same_source(bundle.manifest.source, found.identity, str(bundle.path))
    return found


def _load(bundle: LoadedBundle, source: Source, example_inputs: Any, *, trust: bool, deferred: bool) -> LoadedSource:
    from twoheads.compiler.frontend.torch.load_source import load_source
    from twoheads.compiler.frontend.torch.source_inputs import EXAMPLE_LENGTH, given_inputs

    whole = bundle.manifest.lowering == WHOLE
    examples = _zeros(bundle) if whole and example_inputs is None else example_inputs
    found = load_source(source, example_inputs=examples, trust_remote_code=trust, deferred=deferred, whole=whole)
    own = {name for name, entry in found.inputs.items() if entry.source == "argument"}
    given = {entry.value.name for entry in bundle.program.inputs if entry.source == "argument"}
    if not found.hugging_face or whole or own == given:
        return found
    return replace(found, inputs=given_inputs(_zeros(bundle, EXAMPLE_LENGTH)))  # it was compiled to read other ones


def _load_file(
    bundle: LoadedBundle, source: str | Path, results: Sequence[str], masks: Mapping[str, str] | None
) -> OnnxOriginal:
    if bundle.manifest.approximations:
        raise InputError(
            str(source),
            f"can't be run under {', '.join(bundle.manifest.approximations)}: an ONNX file's attention is fixed",
            "verify an exact bundle of the same file; the approximation is the same pass for both",
        )
    from twoheads.compiler.original.onnx_original import load_onnx_original

    return load_onnx_original(source, results, masks, whole=bundle.manifest.lowering == WHOLE)


def _zeros(bundle: LoadedBundle, tokens: int = 0) -> dict[str, Tensor]:
    """An example of every argument, whose shapes the bundle has."""
    import torch

    arguments = (entry.value for entry in bundle.program.inputs if entry.source == "argument")
    return {
        value.name: torch.zeros(value.block_shape(tokens), dtype=getattr(torch, value.dtype)) for value in arguments
    }


def _check_same_source(compiled: SourceIdentity, found: SourceIdentity, bundle: str) -> None:
    """Refuses a source that the bundle can't have been compiled from; a copy under another name is fine.

    Raises:
        InputError: Another architecture, configuration, or weights of other shapes.
    """
    fix = f"give the model that {bundle} was compiled from, which was called {compiled.name}"
    if found.architecture != compiled.architecture:
        raise InputError(found.name, f"is a {found.architecture}, the bundle holds a {compiled.architecture}", fix)
    if found.sha256 != compiled.sha256:
        raise InputError(found.name, "has another configuration or other weight shapes than the bundle's model", fix)


def evaluate_original(
    original: AnyOriginal,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    implementation: str,
    imposed: Imposition | None = None,
    cut: int | None = None,
) -> tuple[Array, Array | None, float]:
    """Hidden states ``[n, width]``, logits of ``positions`` or ``None``, and the seconds that it took.

    Args:
        original: What to run.
        given: Its arguments by name.
        positions: Where logits are wanted; everywhere if not given.
        implementation: ``fused`` or ``plain``; see the originals.
        imposed: Terms added to the scores.
        cut: Of a plain evaluation: where its products are cut; see the originals.
    """
    if original.identity.form == "onnx":
        return _evaluate_onnx(cast("OnnxOriginal", original), given, positions, implementation, cut)
    import torch

    from twoheads.compiler.original.torch_original import TorchOriginal

    model = TorchOriginal(cast("LoadedSource", original))
    start = time.perf_counter()
    hidden, logits = model.hidden_and_logits(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()},
        None if positions is None else torch.from_numpy(positions),
        implementation,
        imposed,
        cut,
    )
    seconds = time.perf_counter() - start
    return _array(hidden), None if logits is None else _array(logits), seconds


def _evaluate_onnx(
    original: OnnxOriginal,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    implementation: str,
    cut: int | None,
) -> tuple[Array, Array | None, float]:
    start = time.perf_counter()
    hidden, logits = original.hidden_and_logits(dict(given), positions, implementation, cut)
    return hidden, logits, time.perf_counter() - start


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().float().numpy())
