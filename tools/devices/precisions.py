"""What each lossy precision costs a whole model, by the backend that runs what was built for it here."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.devices.rounded import ROUNDING, rounding_loss
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.loss import Loss
from twoheads.export.accelerators.precisions import LOSSY
from twoheads.export.accelerators.target import load_target, target_names
from twoheads.export.pack.trimmed import SOURCES
from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime.backends.emulator import EMULATORS, measures

__all__ = ["Cost", "costs", "lossy"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one target in one precision.

    Attributes:
        target, precision, model: Which.
        backend: What ran it, or would have.
        bytes: Of the artifacts; 0 where engines were refused, or were not built.
        measure: ``perplexity`` or ``hidden states``.
        tokens: Of the run.
        before, after: As a :class:`~twoheads.export.accelerators.loss.Loss` has them.
        share: What is lost.
        problem: Why nothing was measured; empty where it was.
    """

    target: str
    precision: str
    model: str
    backend: str
    bytes: int = 0
    measure: str = ""
    tokens: int = 0
    before: float = 0.0
    after: float = 0.0
    share: float = 0.0
    problem: str = ""


def lossy() -> tuple[tuple[str, str], ...]:
    """Every target with each of its precisions that something here can measure."""
    every = ((name, precision) for name in target_names() for precision in load_target(name).precisions)
    return tuple((name, one) for name, one in every if one in LOSSY and measures(name, one) is not None)


def costs(
    name: str,
    path: Path,
    cases: Sequence[tuple[str, str]],
    block_size: int,
    text: str,
    told: Callable[[Cost], None],
    *,
    rounding: bool = False,
) -> None:
    """Builds a model in each of ``cases``, and tells what it costs; a lowering is compiled once.

    Args:
        name: The model's, for the table.
        path: Its files.
        cases: Pairs of :func:`lossy`.
        block_size: Tokens of a block.
        text: Ranges are taken from its beginning, and its last fifth is measured.
        told: Called with each.
        rounding: Measure what the compiler gets, in the place of what it makes of it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for target, precision in cases:
            lowering = load_target(target).lowering
            bundle = Path(scratch) / lowering
            if not bundle.exists():
                write_bundle(compile_model(path, block_size=block_size, lowering=lowering), bundle)
            logger.info("%s, %s, %s", name, target, precision)
            measured = _rounded if rounding else _cost
            told(measured(name, bundle, target, precision, text))


def _rounded(name: str, bundle: Path, target: str, precision: str, text: str) -> Cost:
    return Cost(target, precision, name, ROUNDING, 0, *_told(rounding_loss(bundle, target, precision, text)))


def _told(loss: Loss) -> tuple[str, int, float, float, float]:
    return loss.measure, loss.tokens, loss.before, loss.after, loss.share


def _cost(name: str, bundle: Path, target: str, precision: str, text: str) -> Cost:
    backend = measures(target, precision)
    assert backend is not None
    try:
        built = build_target(bundle, target, precision=precision, calibrate=text, allow_loss=True)
    except TwoheadsError as error:
        return Cost(target, precision, name, backend, problem=" ".join(str(error).split()))
    loss = built.loss
    if loss is None:
        return Cost(target, precision, name, backend, problem=f"{backend} is not installed here")
    size = sum(
        (bundle / "targets" / target / file).stat().st_size
        for artifact in built.entry.artifacts.values()
        for file in artifact.files
        if not (EMULATORS[backend].checked and file.endswith(SOURCES))
    )
    return Cost(target, precision, name, backend, size, *_told(loss))
