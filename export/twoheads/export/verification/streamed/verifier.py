"""Proof after the build without either side in memory: a bundle and its original, layer by layer."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress, silent
from twoheads.export.verification.approximation import imposition
from twoheads.export.verification.candidates import original_title, pieces_checks
from twoheads.export.verification.check import WITHIN_FLOORS, Check, Reference, compare
from twoheads.export.verification.collect import Question
from twoheads.export.verification.lowered_run import float32_products
from twoheads.export.verification.noise_floor import CUTS, Floors, pooled
from twoheads.export.verification.original_run import evaluate_original, load_original
from twoheads.export.verification.report import BUNDLE, COMPILATION, VerifyReport
from twoheads.export.verification.streamed.bundle_run import BundleValues, run_by_stages
from twoheads.export.verification.streamed.layer_checks import LAYER, LayerChecks
from twoheads.export.verification.verifier import make_question
from twoheads.graphs.errors import InputError
from twoheads.graphs.scratch import scratch_folder
from twoheads.graphs.serialization.bundle_format import FULL_PRECISIONS
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime import LoadedBundle, load

if TYPE_CHECKING:
    from twoheads.compiler.frontend.torch.load_source import LoadedSource
    from twoheads.compiler.original.fed_layers import Exchange

__all__ = ["StreamedReport", "verify_streamed"]

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StreamedReport:
    """The verdict.

    Attributes:
        report: As of ``verify``, with a check for every layer whose result is a value of the bundle.
        unseen: Layers whose result is none of its values. That of the last layer, say, only lives inside of an engine:
            such a layer is proven together with what follows.
        first_fault: Where the bundle parts from the original, in words; ``None`` if it passed.
    """

    report: VerifyReport
    unseen: tuple[str, ...]
    first_fault: str | None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return self.report.passed

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**self.report.to_json(), "unseen": to_json(self.unseen), "first_fault": self.first_fault}


NO_LIMIT = sys.maxsize
"""Bytes; where there is a limit, weights that were packed are let go with their engine, and kept for no other one."""


def verify_streamed(
    bundle: str | Path,
    source: str | Path,
    *,
    length: int | Mapping[str, int] | None = None,
    text: str | None = None,
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None = None,
    progress: Progress | None = None,
    precision: str = "f32",
    trust_remote_code: bool = False,
) -> StreamedReport:
    """Compares as ``verify`` does, and every layer by itself, with one weight of either side in memory at a time.

    The bundle runs once, stage by stage. Then the original runs, its weights in their files, each of its layers on what
    the bundle gave for the layer before; further evaluations of it give the noise floor of each layer.

    Args:
        bundle: The bundle's folder.
        source: What it was compiled from: a folder or a ``.gguf`` file.
        length: As for :func:`~twoheads.export.verification.verifier.verify`, like all others.
        text: Likewise.
        tokens: Likewise.
        progress: Likewise.
        precision: Likewise.
        trust_remote_code: Likewise.

    Raises:
        BundleError, CompileError, InputError: As ``verify``; or the source is an ONNX file, whose layers have no names.
    """
    if Path(source).suffix == ".onnx":
        problem = "is an ONNX file: it has operators, and no layers that could be compared one by one"
        raise InputError(str(source), problem, "leave out --streamed")
    told = progress or silent
    told("load the bundle")
    loaded = load(bundle, precision=precision, memory_limit=NO_LIMIT)
    question = make_question(loaded, length, text, tokens)
    told("open the original")
    original = cast(
        "LoadedSource", load_original(loaded, source, None, trust_remote_code=trust_remote_code, deferred=True)
    )
    with scratch_folder() as folder, float32_products(loaded) as exact:
        for name in ("bundle", "original"):
            (folder / name).mkdir()
        ours = run_by_stages(exact, question, folder / "bundle", told)
        return _compared(loaded, original, question, ours, LayerChecks(ours.values, folder / "original"), told)


def _compared(
    loaded: LoadedBundle,
    original: LoadedSource,
    question: Question,
    ours: BundleValues,
    layers: LayerChecks,
    progress: Progress,
) -> StreamedReport:
    title = original_title(loaded)
    if loaded.manifest.precision not in FULL_PRECISIONS:
        from twoheads.export.verification.streamed.stored_weights import with_stored_bundle_weights

        original, title = with_stored_bundle_weights(original, loaded), f"{title} with the bundle's weights"
    floors, seconds = _evaluations(loaded, original, question, layers, progress)
    final = tuple(_final_checks(floors, ours, title))
    pieces = pieces_checks(loaded, floors.hidden, floors.final_logits, question)
    checks = (*final, *layers.checks(f"{title}, fed with the bundle's own values"), *pieces)
    report = VerifyReport(
        length=question.rows,
        block_size=loaded.program.block_size,
        checks=checks,
        runs=(ours.count,),
        seconds={"original": seconds, "ours": ours.count.seconds},
        approximations=loaded.manifest.approximations,
        precision=loaded.manifest.precision,
        perplexities=(),
        built=None,
        warnings=ours.warnings,
    )
    return StreamedReport(report, layers.unseen, None if report.passed else _first_fault(checks, layers))


def _evaluations(
    loaded: LoadedBundle, original: LoadedSource, question: Question, layers: LayerChecks, progress: Progress
) -> tuple[Floors, float]:
    """The original's outputs with their floors, while ``layers`` sees every layer; and the first one's seconds."""

    def evaluate(kind: str, exchange: Exchange, cut: int | None = None) -> tuple[Array, Array | None, float]:
        with _seen_by(original, exchange):
            return evaluate_original(original, question.given, question.positions, kind, imposition(loaded), cut)

    progress("run the original, fused attention")
    began = time.perf_counter()
    hidden, logits, _ = evaluate("fused", layers.first)
    seconds = time.perf_counter() - began
    progress("run the original, plain attention")
    other = evaluate("plain", layers.again)[:2]
    pooling, pooled_logits = original.pooling, loaded.program.pooled_logits
    floors = Floors.of((hidden, logits), other, pooling, pooled_logits=pooled_logits)
    if floors.suspect or layers.suspect:
        for done, cut in enumerate(CUTS):
            progress("run the original, products cut", done, len(CUTS))
            floors = floors.with_evaluation(*evaluate("plain", layers.again, cut)[:2])
    return floors, seconds


@contextmanager
def _seen_by(original: LoadedSource, exchange: Exchange) -> Generator[None]:
    from twoheads.compiler.original.fed_layers import feeding_layers

    with feeding_layers(original.module, exchange):
        yield


def _final_checks(floors: Floors, ours: BundleValues, title: str) -> list[Check]:
    rows = {"hidden": floors.hidden}
    found = {"hidden": floors.hidden_floor}
    if floors.logits is not None and floors.final_logits is not None:
        rows["logits"], found["logits"] = floors.logits, floors.final_logits
    if floors.pooling is not None and floors.final_embedding is not None:
        rows["embedding"], found["embedding"] = pooled(floors.hidden, floors.pooling), floors.final_embedding
    reference = Reference(COMPILATION, title, rows, found, WITHIN_FLOORS)
    return [compare(BUNDLE, output, ours.outputs[output], reference) for output in rows]


def _first_fault(checks: tuple[Check, ...], layers: LayerChecks) -> str:
    """The first layer that failed; else the first one of those that were seen only together with what follows."""
    for check in checks:
        if check.name == LAYER and not check.passed:
            return check.output
    failed = ", ".join(check.output for check in checks if not check.passed and check.name == COMPILATION)
    pieces = "the head some columns at a time" if any(not check.passed for check in checks) else "the count of calls"
    return f"{layers.unseen[0]}, or what follows it" if layers.unseen and failed else failed or pieces
