"""Proof of generating: every step's logits against the original over the whole sequence, teacher-forced.

The bundle continues a prompt greedily, and the original is run once over prompt and continuation. So both see the same
tokens at every step, whatever each of them would have chosen. The yardstick is that of ``verify``: the noise floor of
the original. A token may differ from the original's choice only where the original's own margin is within it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.export.progress import Progress, silent
from twoheads.export.verification.check import ALLOWED, rounding_bound
from twoheads.export.verification.generation.prompts import Begun, Given, begin
from twoheads.export.verification.generation.shared import equal_beginnings, equal_neighbours
from twoheads.export.verification.lowered_run import with_bundle_weights
from twoheads.export.verification.noise_floor import largest_difference
from twoheads.export.verification.original_run import OriginalResults, Source, load_original, run_original
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.serialization.bundle_format import FULL_PRECISIONS
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.generation.context import Context
from twoheads.runtime.reports.notices import notices

__all__ = ["GenerationReport", "verify_generation"]

Array: TypeAlias = npt.NDArray[np.float32]

BUILT_EXACT = "fp32"
"""What a target's float32 is called."""


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """The verdict.

    Attributes:
        prompt_tokens, new_tokens: How many.
        tokens: The new ones.
        block_size: Tokens of a block; so many ``block_borders`` lie between the steps.
        max_abs_error: Largest difference of a logit from the original's, over all steps.
        max_magnitude: Largest logit of the original.
        noise_floor: Largest difference between evaluations of the original.
        ratio: ``max_abs_error / noise_floor``; a bundle of float32 passes at 4 and below.
        relative_error: Root of the mean square of the differences, as a share of that of the logits.
        same_tokens: Steps at which the original chooses the same token.
        differing: Of the others: step, the token here, the original's, and how far that is ahead of it there.
        append_error: Largest difference where the same tokens are appended at once, instead of step by step.
        rollback_equal: Whether a context that was cut back, at several lengths, and continued gives the very bits of
            one that never had other tokens.
        beginning_equal: Whether a kept beginning gives the very bits of a computed one; ``None`` where none is kept.
        batch_equal: Whether a batch gives the very bits that a prompt gets alone; ``None`` where that is not promised.
        precision: Of the bundle; where it is below float32 the original has the bundle's weights. Rounded ``pages`` are
            named, and what was built for a target in another precision.
        seconds: Of ``generate`` and of the ``original``.
        warnings: As of a run.
        passed: Logits are within the bound, tokens differ within margins only, nothing is unequal, all is finite.
    """

    prompt_tokens: int
    new_tokens: int
    tokens: tuple[int, ...]
    block_size: int
    block_borders: int
    max_abs_error: float
    max_magnitude: float
    noise_floor: float
    ratio: float
    relative_error: float
    same_tokens: int
    differing: tuple[tuple[int, int, int, float], ...]
    append_error: float
    rollback_equal: bool
    beginning_equal: bool | None
    batch_equal: bool | None
    precision: str
    pages: str | None
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verify_generation(
    bundle: str | Path,
    source: Source,
    *,
    new_tokens: int,
    length: int | None = None,
    text: str | None = None,
    tokens: Given = None,
    backend: str = "onnxruntime",
    precision: str = "f32",
    pages: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> GenerationReport:
    """Continues a prompt and compares every step with the original.

    Args:
        bundle: The bundle's folder.
        source: What it was compiled from.
        new_tokens: Steps, 2 or more.
        length: Tokens of the prompt; all of ``text`` or ``tokens`` if not given. Where the model has an encoder, these
            three are of what that reads, and the decoder begins as in ``generate``.
        text: The prompt. With neither this nor ``tokens`` a default text of ``length`` tokens.
        tokens: The prompt's tokens ``[N]`` or ``[1, N]``; of an encoder also arrays by name.
        backend: As for ``load``; what was built in less than float32 is held to the bound of a lower precision.
        precision: Likewise.
        pages: As for ``open_context``; what rounded ones cost is told, and held to the bound of a lower precision.
        trust_remote_code: As for ``load_source``.
        progress: Called as ``progress(phase, done, total)``.

    Raises:
        InputError: The bundle does not generate, or the source is another model.
    """
    report = progress or silent
    if new_tokens < 2:
        raise InputError("--generate", f"is {new_tokens}", "give 2 steps or more")
    report("load the bundle")
    loaded = load(bundle, backend=backend, precision=precision)
    begun = begin(loaded, length, text, tokens, pages)
    prompt, began = begun.prompt, time.perf_counter()
    made, logits = _generate(begun, new_tokens, report)
    seconds = {"generate": time.perf_counter() - began}
    sequence = np.array([*prompt, *made[:-1]], np.int64)
    report("load the original")
    original = load_original(loaded, source, None, trust_remote_code=trust_remote_code)
    if loaded.manifest.precision not in FULL_PRECISIONS:
        original = with_bundle_weights(original, loaded)
    name = loaded.generation.steps.tokens.value.name
    positions = np.arange(len(prompt) - 1, len(sequence), dtype=np.int64)
    found = run_original(loaded, original, {**begun.source, name: sequence[None]}, positions, report)
    del original
    report("cut back and continue")
    append_error, equal = _rollbacks(loaded, begun, made, logits)
    report("a batch")
    plain = pages is None and begun.context.engines.built is None
    equal["batch_equal"] = equal_neighbours(loaded, prompt, new_tokens) if plain else None
    return _report(loaded, begun, made, logits, found, append_error, equal, seconds | found.seconds)


def _generate(begun: Begun, count: int, report: Progress) -> tuple[list[int], Array]:
    """The most likely tokens, and the logits ``[count, classes]`` that each was chosen by."""
    rows: list[Array] = []
    made: list[int] = []
    with begun.context.fork() as context:
        logits = context.append(begun.prompt)
        for at in range(count):
            report("generate", at, count)
            rows.append(logits)
            made.append(int(logits.argmax()))
            if at + 1 < count:
                logits = context.step(made[-1])
    return made, np.stack(rows)


def _rollbacks(
    loaded: LoadedBundle, begun: Begun, made: list[int], logits: Array
) -> tuple[float, dict[str, bool | None]]:
    """How far appending is from stepping, and whether contexts that were cut back, or share, are as fresh ones."""
    prompt, block = begun.prompt, loaded.program.block_size
    sequence = [*prompt, *made[:-1]]
    with begun.context.fork() as fresh:
        expected = fresh.append(sequence)
    lengths = {1, len(prompt) - 1, len(prompt), len(sequence) - 1, len(sequence) // block * block}
    equal = True
    with begun.context.fork() as context:
        context.append(prompt)
        for token in made[:-1]:
            context.step(token)
        for length in sorted(length for length in lengths if 0 < length < len(sequence)):
            context.rollback(length)
            equal &= bool(np.array_equal(_continued(context, sequence), expected))
            context.step(made[-1])
            context.rollback(len(sequence))
    kept = equal_beginnings(loaded, sequence, expected) if begun.context.kept.pages is None else None
    return largest_difference(expected, logits[-1])[0], {"rollback_equal": equal, "beginning_equal": kept}


def _continued(context: Context, sequence: list[int]) -> Array:
    return context.append(sequence[len(context) :])


def _report(
    loaded: LoadedBundle,
    begun: Begun,
    made: list[int],
    logits: Array,
    found: OriginalResults,
    append_error: float,
    equal: dict[str, bool | None],
    seconds: dict[str, float],
) -> GenerationReport:
    if found.logits is None or found.logits_floor is None or found.logits.shape != logits.shape:
        raise InternalError(f"the original of {loaded.program.name} gives no logits of {len(made)} steps")
    floor, expected = found.logits_floor, found.logits
    error, finite = largest_difference(logits, expected)
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    relative = float(np.sqrt(np.mean(np.square(logits - expected, dtype=np.float64)))) / scale if scale else 0.0
    pages = begun.context.kept.pages
    precision = _precision(loaded)
    exact = precision in FULL_PRECISIONS and pages is None
    allowed = ALLOWED * floor.value if exact else 2 * error
    chosen = expected.argmax(axis=1)
    steps = np.flatnonzero(chosen != np.array(made))
    differing = tuple(
        (int(at), made[at], int(chosen[at]), float(expected[at, chosen[at]] - expected[at, made[at]])) for at in steps
    )
    within = error <= ALLOWED * floor.value if exact else relative <= rounding_bound(loaded.manifest).most
    margins = all(margin <= allowed for *_, margin in differing)
    block, prompt = loaded.program.block_size, begun.prompt
    total = len(prompt) + len(made) - 1
    return GenerationReport(
        prompt_tokens=len(prompt),
        new_tokens=len(made),
        tokens=tuple(made),
        block_size=block,
        block_borders=total // block - len(prompt) // block,
        max_abs_error=error,
        max_magnitude=floor.max_magnitude,
        noise_floor=floor.value,
        ratio=error / floor.value if floor.value else 0.0,
        relative_error=relative,
        same_tokens=len(made) - len(steps),
        differing=differing,
        append_error=append_error,
        rollback_equal=bool(equal["rollback_equal"]),
        beginning_equal=equal["beginning_equal"],
        batch_equal=equal["batch_equal"],
        precision=precision,
        pages=pages,
        seconds=seconds,
        warnings=notices(loaded.manifest, loaded.program, total),
        passed=within and margins and False not in equal.values() and finite and floor.finite,
    )


def _precision(loaded: LoadedBundle) -> str:
    """The bundle's, and that of what was built of it, where that is another."""
    own, built = loaded.manifest.precision, loaded.generation.model.engines.built
    return own if built is None or built.precision == BUILT_EXACT else f"{own}, built in {built.precision}"
