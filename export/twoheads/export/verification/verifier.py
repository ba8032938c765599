"""Proof after the build: a bundle against the original model, run over the whole sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.export.engines.run_inputs import logits_positions, verify_inputs, verify_lengths, whole_length
from twoheads.export.progress import Progress, silent
from twoheads.export.verification.approximation import imposition
from twoheads.export.verification.built_run import BuiltFor, open_built
from twoheads.export.verification.candidates import (
    Outcome,
    approximation_checks,
    candidates,
    pieces_checks,
    try_candidate,
)
from twoheads.export.verification.check import Check
from twoheads.export.verification.collect import Question
from twoheads.export.verification.lowered_run import float32_products, with_bundle_weights
from twoheads.export.verification.original_run import (
    AnyOriginal,
    OriginalResults,
    Source,
    by_output,
    evaluate_original,
    load_original,
    run_original,
)
from twoheads.export.verification.report import BUNDLE, WIDENED, VerifyReport
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.lengths import value_rows
from twoheads.graphs.serialization.bundle_format import FULL_PRECISIONS
from twoheads.runtime import LoadedBundle, load

__all__ = ["VerifyReport", "make_question", "verify"]


def verify(
    bundle: str | Path,
    source: Source,
    *,
    length: int | Mapping[str, int] | None = None,
    text: str | None = None,
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None = None,
    progress: Progress | None = None,
    example_inputs: Any = None,
    results: Sequence[str] = (),
    masks: Mapping[str, str] | None = None,
    backend: str = "onnxruntime",
    precision: str = "f32",
    target: str | None = None,
    trust_remote_code: bool = False,
) -> VerifyReport:
    """Runs the original and the bundle on the same ``length`` tokens and compares them.

    Hidden states are compared at all positions, logits at all or, where they would take more than 1 GiB, at evenly
    spread ones with the first, the last and those at block borders. The yardstick is :func:`noise_floor`. A head that
    has pieces of columns, which run where a memory limit has no room for it, is compared with itself in pieces.

    Args:
        bundle: The bundle's folder.
        source: What it was compiled from: a folder, a ``.gguf`` or ``.onnx`` file or a torch module.
        length: Tokens to run; by axis where inputs may have several lengths, ``{"n": 300, "m": 1000}``. All that
            ``text`` or ``tokens`` have if not given.
        text: What to run on, read with the bundle's tokenizer. By default Python's language reference; images, features
            and a decoder's tokens are random.
        tokens: Or the tokens (features) themselves, ``[N, ...]`` or ``[1, N, ...]``, ``length`` of them or more; or an
            array for every argument by name.
        progress: Called as ``progress(phase, done, total)``.
        example_inputs: For a torch module, as given to ``compile_model``.
        results: For an ONNX file, as given to ``compile_model``.
        masks: Likewise.
        backend: What runs the bundle's engines; see :func:`twoheads.runtime.load`.
        precision: In what it multiplies.
        target: Also run what was built for this accelerator, in its emulator.
        trust_remote_code: For a model folder, as given to ``compile_model``.

    Raises:
        BundleError: The bundle is damaged.
        CompileError: The source can't be loaded.
        InputError: The source is not what the bundle was compiled from, or the input does not fit.
    """
    report = progress or silent
    report("load the bundle")
    loaded = load(bundle, backend=backend, precision=precision)
    built = None if target is None else open_built(loaded.path, target)
    # Fails on a length that the model can't take before the original, which may take minutes, is touched.
    question = make_question(loaded, length, text, tokens)
    report("load the original")
    original = load_original(loaded, source, example_inputs, results, masks, trust_remote_code=trust_remote_code)
    found, full = _run_original(loaded, original, question, report)
    del original
    with float32_products(loaded) as exact:
        tried = candidates(loaded, exact, built, found, full)
        outcomes = [try_candidate(candidate, question, report) for candidate in tried]
    pieces = pieces_checks(loaded, found.hidden, found.logits_floor, question)
    return _report(loaded, built, target, found, outcomes, pieces)


def make_question(
    loaded: LoadedBundle,
    length: int | Mapping[str, int] | None,
    text: str | None,
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None,
) -> Question:
    """What both sides are to run; arguments as for :func:`verify`.

    Raises:
        InputError: The input does not fit.
    """
    program = loaded.program
    lengths = verify_lengths(program, whole_length(loaded, text, tokens) if length is None else length)
    rows = value_rows(program.value(program.hidden), lengths)
    loaded.schedule(lengths if lengths else rows)
    positions = None
    if program.logits is not None and not program.pooled_logits:
        positions = logits_positions(rows, program.value(program.logits).block_shape(1)[-1], program.block_size)
    return Question(verify_inputs(loaded, lengths, text=text, tokens=tokens), positions, rows)


def _run_original(
    loaded: LoadedBundle, original: AnyOriginal, question: Question, report: Progress
) -> tuple[OriginalResults, dict[str, npt.NDArray[np.float32]] | None]:
    """The original with the bundle's weights; and by output with its own, where the bundle's are others."""
    full = None
    if loaded.manifest.precision not in FULL_PRECISIONS:
        report("run the original, float32")
        rows = evaluate_original(original, question.given, question.positions, "fused", imposition(loaded))[:2]
        full = by_output(*rows, original.pooling)
        original = with_bundle_weights(original, loaded)
    found = run_original(loaded, original, question.given, question.positions, report)
    if len(found.hidden) != question.rows:
        raise InternalError(f"the original of {loaded.program.name} gives other than {question.rows} rows")
    return found, full


def _report(
    bundle: LoadedBundle,
    built: LoadedBundle | None,
    target: str | None,
    found: OriginalResults,
    outcomes: Sequence[Outcome],
    pieces: tuple[Check, ...],
) -> VerifyReport:
    proof = outcomes[0]
    checks = (*proof.checks, *approximation_checks(bundle, found))
    ours = {run.candidate: run.seconds for outcome in outcomes for run in outcome.runs}
    named = {"ours": ours[BUNDLE]} | ({"ours_float32": ours[WIDENED]} if WIDENED in ours else {})
    return VerifyReport(
        length=proof.report.length,
        block_size=proof.report.block_size,
        checks=(*checks, *(check for outcome in outcomes[1:] for check in outcome.checks), *pieces),
        runs=tuple(run for outcome in outcomes for run in outcome.runs),
        seconds={**found.seconds, **named},
        approximations=bundle.manifest.approximations,
        precision=bundle.manifest.precision,
        perplexities=tuple(outcome.perplexity for outcome in outcomes if outcome.perplexity is not None),
        built=None if built is None or target is None else BuiltFor.of(built, target),
        warnings=proof.report.warnings,
    )
