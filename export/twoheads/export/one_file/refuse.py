"""What a file with the loop inside can't hold, refused by name before anything is written."""

from __future__ import annotations

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    ExpertsStage,
    Program,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseEngine,
)
from twoheads.graphs.schedule.schedule import needed_stages
from twoheads.graphs.serialization.bundle_format import FULL_PRECISION
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.inputs.arrays import check_output

__all__ = ["check_exportable", "needed_body"]


def check_exportable(bundle: Bundle, outputs: tuple[str, ...]) -> None:
    """Refuses a bundle, or an output of it, that can't become one file.

    Raises:
        InputError: Names what stands in the way and what to do instead.
    """
    program, where = bundle.program, str(bundle.path)
    for output in outputs:
        check_output(program, output, positions=False, sink=False)
    if len(set(outputs)) < len(outputs):
        raise InputError("--output", "names an output twice", "name each once")
    if bundle.manifest.dtype != FULL_PRECISION:
        problem = f"has {bundle.manifest.dtype} values; nothing in one file could tell that one left their range"
        raise InputError(where, problem, "compile without --dtype")
    if not input_axes(program):
        raise InputError(where, "takes inputs of one size, so there is no loop to put inside", "use its engines")
    for stage in needed_body(program, outputs):
        _check_stage(where, program, stage)


def needed_body(program: Program, outputs: tuple[str, ...]) -> tuple[Stage, ...]:
    """The body's stages that some of the outputs depend on, in order."""
    names = {stage.name for output in outputs for stage in needed_stages(program, output)[0]}
    return tuple(stage for stage in program.body if stage.name in names)


def _check_stage(where: str, program: Program, stage: Stage) -> None:
    if isinstance(stage, SequenceStage | ScanStage):
        return
    if isinstance(stage, ExpertsStage):
        problem = f"gathers tokens by expert in {stage.name}, which one file does not do"
        raise InputError(where, problem, "compile with --experts dense, or run the bundle")
    engine = program.engine(stage.engine)
    if not isinstance(stage, AttentionStage):
        if not isinstance(engine, TokenwiseEngine):
            raise InputError(where, f"stage {stage.name} has an engine of an unknown kind", "compile the model again")
        return
    if stage.average is not None:
        problem = f"samples keys in {stage.name} (--attention average), and one file draws no random numbers"
        raise InputError(where, problem, "compile with --attention full, or a window with sinks")
    if not isinstance(engine, AttentionEngine):
        kind = type(engine).__name__.removesuffix("Engine").lower()
        problem = f"has attention of the {kind} lowering in {stage.name}, and one file is made of tile engines"
        raise InputError(where, problem, "compile with --lowering tile")
