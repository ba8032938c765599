"""Proof after the build: a bundle against the original model, run over the whole sequence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.engines.run_inputs import logits_positions, verify_inputs, verify_lengths
from twoheads.export.progress import Progress, silent
from twoheads.export.verification.approximation import ApproximationError, approximation_error, imposition
from twoheads.export.verification.built_run import BuiltError, OriginalRows, open_built, run_built
from twoheads.export.verification.lowered_run import (
    ALLOWED_ROUNDING,
    LoweredError,
    float32_products,
    with_bundle_weights,
)
from twoheads.export.verification.noise_floor import Comparator, Comparison
from twoheads.export.verification.original_run import (
    OriginalResults,
    Source,
    evaluate_original,
    load_original,
    run_original,
)
from twoheads.export.verification.perplexity import NextTokenLoss, Perplexity, predicted_tokens
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.lengths import value_rows
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import FULL_PRECISION
from twoheads.runtime import LoadedBundle, Report, load
from twoheads.runtime.memory.sink import Sink

__all__ = ["VerifyReport", "verify"]

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdict. ``twoheads.graphs.serialization.json_codec.to_json`` turns it into JSON.

    Attributes:
        length: Tokens of the input. block_size: ``M``.
        output: The tensor with the largest ratio of error to noise floor, to which the next four numbers belong.
        max_abs_error, max_magnitude, noise_floor, ratio: See :class:`Comparison`.
        hidden: Last hidden states, compared at all positions.
        logits: Compared at ``positions_checked`` positions; ``None`` where the model has no head.
        embedding: The pooled vector; ``None`` where the model has no pooling.
        top1_agreement: Share of the checked positions where both sides prefer the same token; ``None`` without logits.
        positions_checked: Positions of the logits, else of the hidden states.
        engine_calls: Counted in the run of the last output. formula_calls: By the closed formula.
        repeated_calls: Those of ``engine_calls`` that computed rows again, which no formula foretells.
        seconds: Wall time of ``original`` (fused attention), ``original_plain``, and ``ours``, of the last output.
        approximations: That the bundle was compiled with. Where there is one, all numbers above compare with the
            original *under the same mask*: they tell whether the compilation is exact.
        approximate: How far that is from the original as it is; ``None`` for an exact bundle.
        precision: Of the bundle, e.g. ``float32`` or ``float32, weights int8``. Where it is lower than float32, the
            original of all comparisons above has the bundle's own weights, and its engines multiply in float32.
        lowered: The bundle as it runs, against the original in float32; ``None`` for a bundle of float32.
        perplexity: Of a language model on the text, as it runs and of the original; ``None`` for other models.
        built: What was built for a target, run wholly; ``None`` unless asked for.
        warnings: Of the run.
        passed: Every comparison passed, and in every run the counted calls were the formula's. It says nothing about
            ``approximate``. A bundle of a lower precision must also give finite numbers as it runs, and rounding in its
            products must not change the hidden states by more than ``ALLOWED_ROUNDING``; what that and the rounded
            weights cost (``lowered.against_float32``, ``perplexity``) is told, and nothing is demanded of it.
    """

    length: int
    block_size: int
    output: str
    max_abs_error: float
    max_magnitude: float
    noise_floor: float
    ratio: float
    hidden: Comparison
    logits: Comparison | None
    embedding: Comparison | None
    top1_agreement: float | None
    positions_checked: int
    engine_calls: int
    formula_calls: int
    repeated_calls: int
    seconds: dict[str, float]
    approximations: tuple[str, ...]
    approximate: ApproximationError | None
    precision: str
    lowered: LoweredError | None
    perplexity: Perplexity | None
    built: BuiltError | None
    warnings: tuple[str, ...]
    passed: bool


def verify(
    bundle: str | Path,
    source: Source,
    *,
    length: int | Mapping[str, int],
    text: str | None = None,
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None = None,
    progress: Progress | None = None,
    example_inputs: Any = None,
    results: Sequence[str] = (),
    backend: str = "onnxruntime",
    precision: str = "f32",
    target: str | None = None,
    trust_remote_code: bool = False,
) -> VerifyReport:
    """Runs the original and the bundle on the same ``length`` tokens and compares them.

    Hidden states are compared at all positions, logits at all or, where they would take more than 1 GiB, at evenly
    spread ones with the first, the last and those at block borders. The yardstick is :func:`noise_floor`.

    Args:
        bundle: The bundle's folder.
        source: What it was compiled from: a folder, a ``.gguf`` or ``.onnx`` file or a torch module.
        length: Tokens to run; by axis where inputs may have several lengths, ``{"n": 300, "m": 1000}``.
        text: What to run on, read with the bundle's tokenizer. By default Python's language reference; images, features
            and a decoder's tokens are random.
        tokens: Or the tokens (features) themselves, ``[N, ...]`` or ``[1, N, ...]``, ``length`` of them or more; or an
            array for every argument by name.
        progress: Called as ``progress(phase, done, total)``.
        example_inputs: For a torch module, as given to ``compile_model``.
        results: For an ONNX file, as given to ``compile_model``.
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
    lengths = verify_lengths(loaded.program, length)
    rows = value_rows(loaded.program.value(loaded.program.hidden), lengths)
    loaded.schedule(lengths if lengths else rows)
    given = verify_inputs(loaded, lengths, text=text, tokens=tokens)
    positions = _positions(loaded.program, rows)
    report("load the original")
    original = load_original(loaded, source, example_inputs, results, trust_remote_code=trust_remote_code)
    full = None
    if loaded.manifest.precision != FULL_PRECISION:
        report("run the original, float32")
        full = evaluate_original(original, given, positions, "fused", imposition(loaded))[:2]
        original = with_bundle_weights(original, loaded)
    found = run_original(loaded, original, given, positions, report)
    if len(found.hidden) != rows:
        raise InternalError(f"the original of {loaded.program.name} gives {len(found.hidden)} rows, not {rows}")
    del original
    with float32_products(loaded) as exact:
        verdict = _run_ours(exact, given, positions, found, report)
    if full is not None:
        verdict = _run_lowered(loaded, given, positions, found, full, verdict, report)
    if built is None or target is None:
        return verdict
    reached = OriginalRows(*(full or (found.hidden, found.logits)), found.embedding)
    error = run_built(built, target, given, positions, reached, report)
    return replace(verdict, built=error, passed=verdict.passed and error.passed)


def _positions(program: Program, length: int) -> npt.NDArray[np.int64] | None:
    if program.logits is None or program.pooled_logits:
        return None
    classes = next(value.block_shape(1)[-1] for value in program.values() if value.name == program.logits)
    return logits_positions(length, classes, program.block_size)


def _run_ours(
    bundle: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    original: OriginalResults,
    progress: Progress,
) -> VerifyReport:
    hidden = Comparator(original.hidden, original.hidden_floor)
    runs = [_run(bundle, given, "hidden", None, hidden, progress)]
    logits = embedding = perplexity = None
    if original.logits is not None and original.logits_floor is not None:
        logits = Comparator(original.logits, original.logits_floor, ranks=True)
        tokens = predicted_tokens(bundle.program, given)
        loss = None if tokens is None else NextTokenLoss(tokens, positions)
        runs.append(_run(bundle, given, "logits", positions, logits, progress, loss))
        perplexity = _perplexity(original.logits, loss, tokens, positions)
    if original.embedding is not None and original.embedding_floor is not None:
        embedding = Comparator(original.embedding, original.embedding_floor)
        runs.append(_run(bundle, given, "embedding", None, embedding, progress))
    return replace(_verdict(bundle, hidden, logits, embedding, runs, original), perplexity=perplexity)


def _perplexity(
    logits: Array,
    loss: NextTokenLoss | None,
    tokens: npt.NDArray[np.int64] | None,
    positions: npt.NDArray[np.int64] | None,
) -> Perplexity | None:
    """Of the original's ``logits`` beside that of a run; ``None`` where nothing follows on any position."""
    if loss is None or tokens is None or not loss.count:
        return None
    original = NextTokenLoss(tokens, positions)
    original.write(0, logits)
    return Perplexity(original.perplexity, loss.perplexity, loss.count)


def _run_lowered(
    bundle: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    same_weights: OriginalResults,
    full: tuple[Array, Array | None],
    verdict: VerifyReport,
    progress: Progress,
) -> VerifyReport:
    """``verdict`` with what a run of the bundle as it is costs; it has to be finite, and near enough.

    Args:
        bundle: Of a lower precision.
        given: Its arguments.
        positions: Of the logits.
        same_weights: The original's results with the bundle's weights.
        full: Those of the original as it is.
        verdict: Of the engines that multiply in float32.
        progress: As elsewhere.
    """
    hidden = _Collected(full[0])
    runs = [_run(bundle, given, "hidden", None, hidden, progress)]
    logits = perplexity = None
    if full[1] is not None:
        logits = _Collected(full[1])
        tokens = predicted_tokens(bundle.program, given)
        loss = None if tokens is None else NextTokenLoss(tokens, positions)
        runs.append(_run(bundle, given, "logits", positions, logits, progress, loss))
        perplexity = _perplexity(full[1], loss, tokens, positions)
    logits_rows = None if logits is None else logits.rows
    arithmetic = approximation_error(same_weights.hidden, None, hidden.rows, None).hidden_relative
    against = approximation_error(*full, hidden.rows, logits_rows)
    counted = all(run.engine_calls - run.repeated_calls == run.formula_calls for run in runs)
    finite = all(np.isfinite(rows).all() for rows in (hidden.rows, logits_rows) if rows is not None)
    return replace(
        verdict,
        lowered=LoweredError(against, arithmetic, against.hidden_max_abs / same_weights.hidden_floor.value),
        perplexity=perplexity,
        seconds={**verdict.seconds, "ours": runs[-1].seconds, "ours_float32": verdict.seconds["ours"]},
        passed=verdict.passed and counted and finite and arithmetic <= ALLOWED_ROUNDING,
    )


class _Collected:
    """A sink that keeps rows shaped as ``original``."""

    def __init__(self, original: Array) -> None:
        self.rows: Array = np.full(original.shape, np.nan, np.float32)

    def write(self, start_row: int, rows: Array) -> None:
        self.rows[start_row : start_row + len(rows)] = rows


class _Both:
    """A sink that hands rows to two."""

    def __init__(self, one: Sink, other: Sink) -> None:
        self._sinks = (one, other)

    def write(self, start_row: int, rows: Array) -> None:
        for sink in self._sinks:
            sink.write(start_row, rows)


def _run(
    bundle: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    output: str,
    positions: npt.NDArray[np.int64] | None,
    comparator: Sink,
    progress: Progress,
    loss: NextTokenLoss | None = None,
) -> Report:
    phase = f"run the bundle, {output}"
    progress(phase)
    one_row = output == "embedding" or (output == "logits" and bundle.program.pooled_logits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report repeats them
        result = bundle.run(
            given,
            output=output,
            positions=positions,
            sink=None if one_row else comparator if loss is None else _Both(comparator, loss),
            progress=lambda done, total: progress(phase, done, total),
        )
    if result.array is not None:
        comparator.write(0, result.array.reshape(1, -1))
    return result.report


def _verdict(
    bundle: LoadedBundle,
    hidden: Comparator,
    logits: Comparator | None,
    embedding: Comparator | None,
    runs: list[Report],
    original: OriginalResults,
) -> VerifyReport:
    compared = {"hidden": hidden, "logits": logits, "embedding": embedding}
    results = {name: comparator.result() for name, comparator in compared.items() if comparator is not None}
    output = max(results, key=lambda name: (not results[name].passed, results[name].ratio))
    worst, last = results[output], runs[-1]
    counted = all(run.engine_calls - run.repeated_calls == run.formula_calls for run in runs)
    return VerifyReport(
        length=last.length,
        block_size=last.block_size,
        output=output,
        max_abs_error=worst.max_abs_error,
        max_magnitude=worst.max_magnitude,
        noise_floor=worst.noise_floor,
        ratio=worst.ratio,
        hidden=results["hidden"],
        logits=results.get("logits"),
        embedding=results.get("embedding"),
        top1_agreement=logits.agreement if logits is not None else None,
        positions_checked=results.get("logits", results["hidden"]).positions,
        engine_calls=last.engine_calls,
        formula_calls=last.formula_calls,
        repeated_calls=last.repeated_calls,
        seconds={**original.seconds, "ours": last.seconds},
        approximations=bundle.manifest.approximations,
        approximate=original.approximate,
        precision=bundle.manifest.precision,
        lowered=None,
        perplexity=None,
        built=None,
        warnings=last.warnings,
        passed=counted and all(result.passed for result in results.values()),
    )
