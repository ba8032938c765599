"""Proof after the build: a bundle against the original model, run over the whole sequence."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from twoheads.export.approximation import ApproximationError, approximation_error, imposition
from twoheads.export.noise_floor import Comparator, Comparison, Floor, noise_floor, pooled_floor
from twoheads.export.progress import Progress, silent
from twoheads.export.verify_input import logits_positions, verify_inputs, verify_lengths
from twoheads.graphs.bundle_format import SourceIdentity
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program import Pooling, Program
from twoheads.graphs.program_lengths import value_rows
from twoheads.runtime import LoadedBundle, Report, load

if TYPE_CHECKING:
    from torch import Tensor, nn

    from twoheads.compiler.impose_attention import Imposition
    from twoheads.compiler.onnx_reference import OnnxOriginal
    from twoheads.compiler.sources import LoadedSource

__all__ = ["VerifyReport", "verify"]

Array: TypeAlias = npt.NDArray[np.float32]

Source: TypeAlias = "str | Path | nn.Module"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdict. ``twoheads.graphs.json_codec.to_json`` turns it into JSON.

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
        warnings: Of the run.
        passed: Every comparison passed, and in every run the counted calls were the formula's. It says nothing about
            ``approximate``.
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
    warnings: tuple[str, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class _Original:
    """What the fused evaluation of the original gave, with the noise floors; logits at ``positions``."""

    hidden: Array
    hidden_floor: Floor
    logits: Array | None
    logits_floor: Floor | None
    embedding: Array | None
    embedding_floor: Floor | None
    seconds: dict[str, float]
    approximate: ApproximationError | None


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

    Raises:
        BundleError: The bundle is damaged.
        CompileError: The source can't be loaded.
        InputError: The source is not what the bundle was compiled from, or the input does not fit.
    """
    report = progress or silent
    report("load the bundle")
    loaded = load(bundle, backend=backend, precision=precision)
    # Fails on a length that the model can't take before the original, which may take minutes, is touched.
    lengths = verify_lengths(loaded.program, length)
    rows = value_rows(loaded.program.value(loaded.program.hidden), lengths)
    loaded.schedule(lengths if lengths else rows)
    given = verify_inputs(loaded, lengths, text=text, tokens=tokens)
    positions = _positions(loaded.program, rows)
    report("load the original")
    original = _run_original(loaded, _load_original(loaded, source, example_inputs, results), given, positions, report)
    if len(original.hidden) != rows:
        raise InternalError(f"the original of {loaded.program.name} gives {len(original.hidden)} rows, not {rows}")
    return _run_ours(loaded, given, positions, original, report)


def _positions(program: Program, length: int) -> npt.NDArray[np.int64] | None:
    if program.logits is None or program.pooled_logits:
        return None
    classes = next(value.block_shape(1)[-1] for value in program.values() if value.name == program.logits)
    return logits_positions(length, classes, program.block_size)


def _run_original(
    bundle: LoadedBundle,
    original: LoadedSource | OnnxOriginal,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    progress: Progress,
) -> _Original:
    """Both evaluations of the original; of the plain one only the distance is kept, and of the model nothing."""
    check_same_source(bundle.manifest.source, original.identity, str(bundle.path))
    pooling = original.pooling
    progress("run the original, fused attention")
    hidden, logits, fused_seconds = _evaluate(original, given, positions, "fused")
    approximate = None
    if bundle.manifest.approximations:
        progress("run the original, the bundle's mask")
        exact = (hidden, logits)
        hidden, logits, fused_seconds = _evaluate(original, given, positions, "fused", imposition(bundle))
        approximate = approximation_error(*exact, hidden, logits)
    embedding = None if pooling is None else _pooled(hidden, pooling)
    progress("run the original, plain attention")
    plain_hidden, plain_logits, plain_seconds = _evaluate(original, given, positions, "plain", imposition(bundle))
    heads = (logits is None, embedding is None)
    if heads != (bundle.program.logits is None, bundle.program.pooling is None):
        raise InternalError(f"the original of {bundle.program.name} gives other outputs than its bundle")
    hidden_floor = noise_floor(hidden, plain_hidden)
    logits_floor = None if logits is None or plain_logits is None else noise_floor(logits, plain_logits)
    if logits_floor is not None and bundle.program.pooled_logits:
        logits_floor = pooled_floor(logits_floor, hidden_floor)
    return _Original(
        hidden=hidden,
        hidden_floor=hidden_floor,
        logits=logits,
        logits_floor=logits_floor,
        embedding=embedding,
        embedding_floor=(
            None if embedding is None or pooling is None else noise_floor(embedding, _pooled(plain_hidden, pooling))
        ),
        seconds={"original": fused_seconds, "original_plain": plain_seconds},
        approximate=approximate,
    )


def _load_original(
    bundle: LoadedBundle, source: Source, example_inputs: Any, results: Sequence[str]
) -> LoadedSource | OnnxOriginal:
    if not isinstance(source, str | Path) or Path(source).suffix != ".onnx":
        from twoheads.compiler.sources import load_source

        return load_source(source, example_inputs=example_inputs)
    if bundle.manifest.approximations:
        raise InputError(
            str(source),
            f"can't be run under {', '.join(bundle.manifest.approximations)}: an ONNX file's attention is fixed",
            "verify an exact bundle of the same file; the approximation is the same pass for both",
        )
    from twoheads.compiler.onnx_reference import load_onnx_original

    return load_onnx_original(source, results)


def check_same_source(compiled: SourceIdentity, found: SourceIdentity, bundle: str) -> None:
    """Refuses a source that the bundle can't have been compiled from; a copy under another name is fine.

    Raises:
        InputError: Another architecture, configuration, or weights of other shapes.
    """
    fix = f"give the model that {bundle} was compiled from, which was called {compiled.name}"
    if found.architecture != compiled.architecture:
        raise InputError(found.name, f"is a {found.architecture}, the bundle holds a {compiled.architecture}", fix)
    if found.sha256 != compiled.sha256:
        raise InputError(found.name, "has another configuration or other weight shapes than the bundle's model", fix)


def _evaluate(
    original: LoadedSource | OnnxOriginal,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    implementation: str,
    imposed: Imposition | None = None,
) -> tuple[Array, Array | None, float]:
    if original.identity.form == "onnx":
        return _evaluate_onnx(cast("OnnxOriginal", original), given, positions, implementation)
    import torch

    original = cast("LoadedSource", original)
    start = time.perf_counter()
    hidden, logits = original.hidden_and_logits(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()},
        None if positions is None else torch.from_numpy(positions),
        implementation,
        imposed,
    )
    seconds = time.perf_counter() - start
    return _array(hidden), None if logits is None else _array(logits), seconds


def _evaluate_onnx(
    original: OnnxOriginal,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    implementation: str,
) -> tuple[Array, Array | None, float]:
    start = time.perf_counter()
    hidden, logits = original.hidden_and_logits(dict(given), positions, implementation)
    return hidden, logits, time.perf_counter() - start


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().float().numpy())


def _pooled(hidden: Array, pooling: Pooling) -> Array:
    """The embedding ``[1, width]`` as sentence-transformers makes it, in torch: nothing shared with the runtime."""
    import torch

    rows = torch.from_numpy(hidden).double()
    vector = {"mean": lambda: rows.mean(0), "cls": lambda: rows[0], "last": lambda: rows[-1]}[pooling.mode]()
    if pooling.normalize:
        vector = torch.nn.functional.normalize(vector, dim=0)
    return _array(vector[None])


def _run_ours(
    bundle: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    positions: npt.NDArray[np.int64] | None,
    original: _Original,
    progress: Progress,
) -> VerifyReport:
    hidden = Comparator(original.hidden, original.hidden_floor)
    runs = [_run(bundle, given, "hidden", None, hidden, progress)]
    logits = embedding = None
    if original.logits is not None and original.logits_floor is not None:
        logits = Comparator(original.logits, original.logits_floor, ranks=True)
        runs.append(_run(bundle, given, "logits", positions, logits, progress))
    if original.embedding is not None and original.embedding_floor is not None:
        embedding = Comparator(original.embedding, original.embedding_floor)
        runs.append(_run(bundle, given, "embedding", None, embedding, progress))
    return _verdict(bundle, hidden, logits, embedding, runs, original)


def _run(
    bundle: LoadedBundle,
    given: Mapping[str, npt.NDArray[Any]],
    output: str,
    positions: npt.NDArray[np.int64] | None,
    comparator: Comparator,
    progress: Progress,
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
            sink=None if one_row else comparator,
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
    original: _Original,
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
        warnings=last.warnings,
        passed=counted and all(result.passed for result in results.values()),
    )
