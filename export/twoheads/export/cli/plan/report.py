"""What ``plan`` prints: a schedule as facts and a table of stages, or as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from twoheads.export.cli.shared.console import count_text, of_text, print_facts, print_table, size_text
from twoheads.graphs.costs.stage_costs import CHAINED
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule, StagePlan
from twoheads.graphs.schedule.spill import SpillPlan
from twoheads.graphs.schedule.theorems import LOWER_BOUND, SCAN, StageClaim, program_claim, stage_claims

__all__ = ["length_text", "print_schedule", "schedule_facts", "schedule_to_json", "spill_to_json"]


def schedule_facts(schedule: Schedule) -> dict[str, Any]:
    """What every JSON of a plan begins with."""
    return {
        "model": schedule.program.name,
        "length": schedule.length,
        "lengths": schedule.lengths,
        "block_size": schedule.program.block_size,
        "key_tile": schedule.program.key_tile,
        "blocks": schedule.blocks,
        "output": schedule.output,
        "positions": schedule.positions,
    }


def schedule_to_json(schedule: Schedule) -> dict[str, Any]:
    """The figures of ``plan --json``; sizes in bytes."""
    claim = program_claim(schedule)
    return schedule_facts(schedule) | {
        "engine_calls": schedule.engine_calls,
        "formula_calls": schedule.formula_calls,
        "formula": schedule.formula,
        "theorem": claim.theorem,
        "rounds": claim.rounds,
        "paper_calls": claim.paper_calls,
        "floor_calls": claim.floor_calls,
        "flops": schedule.flops,
        "bytes_moved": schedule.bytes_moved,
        "peak_bytes": schedule.peak_bytes,
        "memory": dataclasses.asdict(schedule.memory),
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "engine": stage.engine,
                "calls": stage.calls,
                "formula_calls": stage.formula.calls,
                "formula": stage.formula.text,
                "theorem": theory.theorem,
                "paper_calls": None if theory.paper is None else theory.paper.calls,
                "paper_formula": None if theory.paper is None else theory.paper.text,
                "floor_calls": theory.floor.calls,
                "floor_formula": theory.floor.text,
                "flops": stage.flops,
                "bytes_moved": stage.bytes_moved,
                "outputs_bytes": stage.outputs_bytes,
            }
            for stage, theory in zip(schedule.stages, stage_claims(schedule), strict=True)
        ],
    }


def spill_to_json(spill: SpillPlan) -> dict[str, Any]:
    """What ``--memory-limit`` adds; sizes in bytes."""
    return {
        "limit": spill.limit,
        "values": sorted(spill.values),
        "disk_bytes": spill.disk_bytes,
        "peak_bytes": None if spill.memory is None else spill.memory.total,
    }


def print_schedule(schedule: Schedule, *, every_stage: bool) -> None:
    """Prints the figures, then a row for each stage, or for all that are alike."""
    program, memory, whole = schedule.program, schedule.memory, _mixes_no_tokens(schedule.program)
    print_facts(
        (
            ("model", program.name),
            ("length", "one size" if whole else length_text(schedule)),
            ("output", schedule.output + (f" at {schedule.positions} positions" if schedule.positions else "")),
            ("engine calls", str(schedule.engine_calls) if whole else _calls_text(schedule)),
            *(() if whole else _claims(schedule)),
            ("work", f"{count_text(schedule.flops)}FLOP, {size_text(schedule.bytes_moved)} moved"),
            (
                "peak memory",
                f"{size_text(schedule.peak_bytes)} = values {size_text(memory.values)} + weights "
                f"{size_text(memory.weights)} + workspace {size_text(memory.workspace)} + process "
                f"{size_text(memory.process)}",
            ),
        )
    )
    columns = ("stage", "theorem", ">calls", "formula", ">paper", ">floor", ">FLOP", ">moved", ">outputs")
    shown = [at for at, name in enumerate(columns) if not whole or name not in _OF_CLAIMS]
    rows = _rows(schedule, every_stage=every_stage)
    print_table("", [columns[at] for at in shown], [[row[at] for at in shown] for row in rows])


_OF_CLAIMS = frozenset({"theorem", "formula", ">paper", ">floor"})
"""Columns that compare with what the theory says of attention by tiles."""


def _mixes_no_tokens(program: Program) -> bool:
    """Whether the program has no attention and no scan and one input size: a model that is one engine."""
    return not program.attentions and not program.scans and not input_axes(program)


def _claims(schedule: Schedule) -> tuple[tuple[str, str], ...]:
    """What the theory says of the calls; its lower bound is one on attention."""
    claim = program_claim(schedule)
    bound = f"; {LOWER_BOUND}" if schedule.program.attentions else ""
    met = "every visible (query, key) pair must meet in one" if schedule.program.attentions else "one a block"
    return (
        ("formula", schedule.formula),
        ("theorem", f"{claim.theorem}{bound}"),
        ("paper's calls", _paper_text(schedule)),
        ("floor", f"{claim.floor_calls} calls: {met}"),
        ("rounds", f"{claim.rounds} of calls that depend on each other, {_rounds_text(schedule)}"),
    )


def _calls_text(schedule: Schedule) -> str:
    """Counted and by the formula; where tokens choose experts, no more than that."""
    most = "at most, as tokens choose experts; " if schedule.bounded else ""
    return f"{schedule.engine_calls} ({most}by the formula: {schedule.formula_calls})"


def length_text(schedule: Schedule) -> str:
    """Tokens and blocks; the length of every axis where there are several."""
    several = ", ".join(f"{axis} = {length}" for axis, length in schedule.lengths.items())
    tokens = f"{several} tokens" if len(schedule.lengths) > 1 else of_text(schedule.length, "token")
    return f"{tokens} in {of_text(schedule.blocks, 'block')} of {schedule.program.block_size}"


def _rounds_text(schedule: Schedule) -> str:
    """What the number of rounds depends on."""
    chained = sum(plan.kind in CHAINED for plan in schedule.stages)
    return f"as {chained} stages take a block after the other" if chained else "whatever the length"


def _paper_text(schedule: Schedule) -> str:
    """What the paper's own construction takes, and how it compares with ours; or which stage it does not cover."""
    calls = program_claim(schedule).paper_calls
    if calls is None:
        missing = next(claim for claim in stage_claims(schedule) if claim.paper is None)
        what = "the state" if missing.theorem == SCAN else "the mask"
        return f"the paper has no construction for {what} of {missing.stage}"
    return f"{calls}, {calls / schedule.formula_calls:.1f} times ours"


def _rows(schedule: Schedule, *, every_stage: bool) -> list[tuple[str, ...]]:
    """One row for every stage, or for all stages that differ by name only, in order of first appearance."""
    groups: dict[tuple[StagePlan, StageClaim, str], list[str]] = {}
    for stage, claim in zip(schedule.stages, stage_claims(schedule), strict=True):
        same = dataclasses.replace(stage, name=""), dataclasses.replace(claim, stage="")
        groups.setdefault((*same, stage.name if every_stage else ""), []).append(stage.name)
    rows = groups.items()
    return [_row(dataclasses.replace(stage, name=names[0]), claim, len(names)) for (stage, claim, _), names in rows]


def _row(stage: StagePlan, claim: StageClaim, times: int) -> tuple[str, ...]:
    return (
        stage.name if times == 1 else f"{stage.name} ... ({times} alike)",
        claim.theorem,
        str(stage.calls) if times == 1 else f"{times} x {stage.calls}",
        stage.formula.text,
        "-" if claim.paper is None else str(claim.paper.calls),
        str(claim.floor.calls),
        count_text(stage.flops * times),
        size_text(stage.bytes_moved * times),
        size_text(stage.outputs_bytes),
    )
