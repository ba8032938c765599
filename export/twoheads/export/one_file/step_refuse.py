"""What a file for steps can't hold, refused by name before anything is written."""

from __future__ import annotations

from twoheads.export.one_file.refuse import check_exportable
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import COUNTING
from twoheads.graphs.variants.decoder import step_obstacle
from twoheads.graphs.variants.steps import Steps, step_steps
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["check_step_exportable"]

OUTPUTS = ("last", "logits", "hidden")


def check_step_exportable(bundle: Bundle, outputs: tuple[str, ...]) -> None:
    """Refuses a bundle, or an output of it, that can't become a file for steps.

    Raises:
        InputError: Names what stands in the way and what to do instead.
    """
    where = str(bundle.path)
    if (obstacle := step_obstacle(bundle.program)) is not None:
        raise InputError(obstacle.where, obstacle.problem, f"{obstacle.fix}, or export without --step")
    for output in outputs:
        if output not in OUTPUTS:
            raise InputError("--output", f"is {output}, which is of a whole input", f"say {', '.join(OUTPUTS)}")
    check_exportable(bundle, outputs)
    steps = step_steps(bundle.program)
    if steps is None or steps.source:
        raise InputError(where, "generates behind an encoder, which one file does not do", "run the bundle")
    if not steps.kept and _reads_places(steps):
        problem = "keeps no keys, so nothing in one file tells how many tokens stand before"
        raise InputError(where, f"counts its tokens and {problem}", "run the bundle")
    _check_files(bundle, steps)


def _reads_places(steps: Steps) -> bool:
    """Whether something depends on how many tokens stand before."""
    read = set(steps.body.inputs)
    counts = (entry.source in COUNTING and entry.value.name in read for entry in steps.program.inputs)
    return steps.program.max_length is not None or any(counts)


def _check_files(bundle: Bundle, steps: Steps) -> None:
    """The engines of one row are among the bundle's files."""
    regions = (steps.region(stage, 1) for stage, _ in steps.body.regions)
    for engine in (*regions, *(engine for _, engine in steps.heads(1))):
        if not bundle.has(bundle.engine_file(engine.name)):
            problem = "holds no engines that extend a sequence"
            raise InputError(str(bundle.path), problem, "compile the model again, without --no-generation")
