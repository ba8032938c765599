"""Compiles one model of the zoo, compares it with the original at every length, and says what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.zoo.entry import BLOCK, Entry
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import AttentionStage, Program

__all__ = ["measure"]


def measure(entry: Entry, folder: Path) -> dict[str, Any]:
    """A row of the coverage table; ``folder`` is empty and stays small.

    A model that is refused gives a row with the message. Anything else that goes wrong is raised.
    """
    source = entry.make(folder)
    row: dict[str, Any] = {
        "name": entry.name, "family": entry.family, "door": entry.door, "maker": entry.maker, "block_size": BLOCK
    }  # fmt: skip
    try:
        compiled = compile_model(source, block_size=BLOCK, **(entry.options or {}))
    except CompileError as error:
        return row | {"refusal": str(error)}
    bundle = write_bundle(compiled, folder / "bundle")
    examples = (entry.options or {}).get("example_inputs")
    # A long input first: nothing of it may stay behind, in our engines or in the original.
    reports = [verify(bundle, source, length=length, example_inputs=examples) for length in reversed(entry.lengths)]
    reports.reverse()
    worst = max((report.worst for report in reports), key=lambda check: check.ratio)
    return row | {
        "refusal": None,
        "lowering": compiled.lowering,
        "masks": _masks(compiled.program),
        "lengths": [report.length for report in reports],
        "error": worst.max_abs_error,
        "magnitude": worst.max_magnitude,
        "noise_floor": worst.noise_floor,
        "ratio": worst.ratio,
        "engine_calls": [report.calls.engine_calls - report.calls.repeated_calls for report in reports],
        "formula_calls": [report.calls.formula_calls for report in reports],
        "passed": all(report.passed for report in reports),
        "outputs": [check.output for check in reports[0].proof],
    }


def _masks(program: Program) -> list[str]:
    """The masks of its attentions, once each, with what else they add to their scores."""
    axes = {value.name: value.axis for value in program.values()}
    found: dict[str, None] = {}
    for stage in program.body:
        if isinstance(stage, AttentionStage):
            cross = axes[stage.query] != axes[stage.key]
            extras = [
                *(["sinks"] if stage.sinks else []),
                *(["bias by distance"] if stage.bias and stage.bias.table else []),
                *(["ALiBi"] if stage.bias and stage.bias.slope else []),
            ]
            found[" + ".join(["cross" if cross else str(stage.mask), *extras])] = None
    return list(found)
