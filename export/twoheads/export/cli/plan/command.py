"""``twoheads plan``: what a run of one length will cost, before anything is built or run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from twoheads.export.cli.plan.device import device_threads, measured_tiles, read_device, time_fact, time_to_json
from twoheads.export.cli.plan.plot import plot_scalings
from twoheads.export.cli.plan.workers import parse_workers, print_scalings, scale, scalings_to_json
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import count_text, print_facts, print_json, print_table, size_text
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.shared.spill_line import spill_line
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.policy import parse_policy
from twoheads.graphs.prediction.device_profile import DeviceProfile
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.lengths import resolve_lengths, value_rows
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule, StagePlan, make_schedule
from twoheads.graphs.schedule.spill import NOTHING_SPILLED, SpillPlan, plan_spill
from twoheads.graphs.schedule.theorems import LOWER_BOUND, StageClaim, program_claim, stage_claims
from twoheads.graphs.variants.choose import FusedPrograms, fused_programs
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.execution.crew import available_threads

__all__ = ["NAME", "command", "schedule_to_json"]

NAME = "plan"


def command(
    subject: Annotated[
        Path, typer.Argument(metavar="SOURCE|BUNDLE", help="A model that is not compiled yet, or a bundle.")
    ],
    length: Annotated[
        str | None,
        typer.Option(
            "--length", "-n", metavar="N", help="Tokens of the input; of several, by axis: n=1000,m=300 (see inspect)."
        ),
    ] = None,
    output: options.OutputOption = None,
    positions: options.Positions = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", metavar="M", help="For a SOURCE: tokens of a block.")
    ] = None,
    key_tile: Annotated[
        int | None, typer.Option("--key-tile", metavar="K", help="For a SOURCE: keys of one attention call.")
    ] = None,
    attention: options.Attention = "full",
    lowering: options.LoweringOption = options.Lowering.AUTO,
    results: options.Results = None,
    trust_remote_code: options.TrustRemoteCode = False,
    every_stage: Annotated[
        bool, typer.Option("--stages", help="One line for every stage, not one for all that are alike.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Blocks in parallel, for the memory; all cores if not given.")
    ] = None,
    memory_limit: options.MemoryLimit = None,
    device: Annotated[
        Path | None,
        typer.Option("--device", metavar="PROFILE.json", help="Predict the time, from what `twoheads profile` wrote."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option("--workers", metavar="8..1024", help="On so many machines like that of --device; or e.g. 1,2,8."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", metavar="POLICY", help="With --workers: also under this attention, e.g. window:4096."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="With --workers: write a picture of the table.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Tell the engine calls, the formula they follow, FLOPs, bytes and memory of a run of N tokens.

    With --memory-limit it tells what a run with that limit keeps in files, or refuses with the numbers; with --device
    also the time that it will take, and with --workers what several such machines do and take.

    The length is left out where the inputs have a fixed size, such as images.

    Example: twoheads plan smollm2.bundle --length 100000 --device here.json --workers 1..64
    """
    arguments.require_path(subject, "a model or a bundle")
    fused = _program(
        subject, block_size, key_tile, attention, lowering, tuple(results or ()), device, trust=trust_remote_code
    )
    program = fused.program
    lengths = resolve_lengths(program, {} if length is None else arguments.parse_lengths(length))
    hidden = value_rows(program.value(program.hidden), lengths)
    rows = None if positions is None else int(arguments.parse_positions(positions, hidden).size)
    wanted = output.value if output else None
    profile = None if device is None else read_device(device, program)
    parallel = threads or available_threads()
    if device is not None and profile is not None:
        parallel = device_threads(device, profile, threads)

    def expand(program: Program) -> Schedule:
        return make_schedule(program, lengths, output=wanted, positions=rows, workers=parallel)

    if workers is not None or compare or plot is not None:
        schedule = expand(program)
        counts, measured = _scaling_of(workers, profile, plot, memory_limit)
        scalings = scale(program, expand, measured, workers=counts, threads=parallel, policies=compare or ())
        if plot is not None:
            plot_scalings(plot, f"{program.name}, {schedule.length} tokens", scalings)
        if as_json:
            print_json(_schedule_facts(schedule) | {"workers": scalings_to_json(scalings)})
        else:
            print_scalings(schedule, measured, scalings)
        return
    limit = None if memory_limit is None else arguments.parse_size(memory_limit)
    schedule = expand(fused.chosen(lengths) if limit is None else program)
    spill = NOTHING_SPILLED if limit is None else plan_spill(schedule, limit=limit, disk=True, workers=parallel)
    if as_json:
        more = {} if limit is None else {"spill": _spill_to_json(spill)}
        more |= {} if profile is None else {"device": time_to_json(schedule, profile, parallel)}
        print_json(schedule_to_json(schedule) | more)
        return
    _print_schedule(schedule, every_stage=every_stage)
    if profile is not None:
        print_facts((time_fact(predict_run(schedule, profile, parallel), profile),))
    if limit is not None:
        print_facts((("spilling", spill_line(spill)),))


def _program(
    subject: Path,
    block_size: int | None,
    key_tile: int | None,
    attention: str,
    lowering: options.Lowering,
    results: tuple[str, ...],
    device: Path | None,
    *,
    trust: bool,
) -> FusedPrograms:
    """The programs of a bundle, or those of a source as it would be compiled.

    A bundle is taken with the key tiles that the device's profile was measured with.
    """
    if arguments.is_bundle(subject):
        sized = block_size is not None or key_tile is not None or lowering != options.Lowering.AUTO
        if sized or results or not parse_policy(attention).exact:
            problem = "is a bundle, whose block size, key tile, lowering, attention and results are fixed"
            fix = "leave --block-size, --key-tile, --lowering, --attention and --result out, or give the source"
            raise InputError(str(subject), problem, fix)
        bundle = read_bundle(subject, check="size", engines=False)
        if device is not None:
            bundle = measured_tiles(device, bundle)
        return bundle.fused
    from twoheads.compiler import plan_model

    with PhaseProgress() as progress:
        size = options.BLOCK_SIZE if block_size is None else block_size
        program = plan_model(
            subject,
            block_size=size,
            key_tile=key_tile,
            attention=attention,
            lowering=lowering.value,
            results=results,
            trust_remote_code=trust,
            progress=progress,
        )
    return fused_programs(program, lowering.value, short=True)


def _scaling_of(
    workers: str | None, profile: DeviceProfile | None, plot: Path | None, memory_limit: str | None
) -> tuple[tuple[int, ...], DeviceProfile]:
    """The numbers of workers and the profile, where the options are such that both are there."""
    if workers is None:
        raise InputError("--compare and --plot", "are of a table by workers", "add e.g. --workers 1..64")
    counts = parse_workers(workers)
    if profile is None:
        problem = "needs the measured times of one machine's calls"
        fix = "measure them with: twoheads profile BUNDLE -o PROFILE.json, and add --device PROFILE.json"
        raise InputError(f"--workers {workers}", problem, fix)
    if memory_limit is not None:
        problem = "is of a run on one machine, which keeps values in files"
        raise InputError("--memory-limit", problem, "leave it out, or leave --workers out")
    if plot is not None:
        arguments.check_output_path(plot)
    return counts, profile


def _schedule_facts(schedule: Schedule) -> dict[str, Any]:
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
    return _schedule_facts(schedule) | {
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


def _spill_to_json(spill: SpillPlan) -> dict[str, Any]:
    return {
        "limit": spill.limit,
        "values": sorted(spill.values),
        "disk_bytes": spill.disk_bytes,
        "peak_bytes": None if spill.memory is None else spill.memory.total,
    }


def _print_schedule(schedule: Schedule, *, every_stage: bool) -> None:
    program, memory, claim = schedule.program, schedule.memory, program_claim(schedule)
    print_facts(
        (
            ("model", program.name),
            ("length", _length_text(schedule)),
            ("output", schedule.output + (f" at {schedule.positions} positions" if schedule.positions else "")),
            ("engine calls", f"{schedule.engine_calls} (by the formula: {schedule.formula_calls})"),
            ("formula", schedule.formula),
            ("theorem", f"{claim.theorem}; {LOWER_BOUND}"),
            ("paper's calls", _paper_text(schedule)),
            ("floor", f"{claim.floor_calls} calls: every visible (query, key) pair must meet in one"),
            ("rounds", f"{claim.rounds} of calls that depend on each other, whatever the length"),
            ("work", f"{count_text(schedule.flops)}FLOP, {size_text(schedule.bytes_moved)} moved"),
            (
                "peak memory",
                f"{size_text(schedule.peak_bytes)} = values {size_text(memory.values)} + weights "
                f"{size_text(memory.weights)} + workspace {size_text(memory.workspace)} + process "
                f"{size_text(memory.process)}",
            ),
        )
    )
    print_table(
        "",
        ("stage", "theorem", ">calls", "formula", ">paper", ">floor", ">FLOP", ">moved", ">outputs"),
        _rows(schedule, every_stage=every_stage),
    )


def _length_text(schedule: Schedule) -> str:
    """Tokens and blocks; the length of every axis where there are several."""
    several = ", ".join(f"{axis} = {length}" for axis, length in schedule.lengths.items())
    tokens = f"{several} tokens" if len(schedule.lengths) > 1 else f"{schedule.length} tokens"
    return f"{tokens} in {schedule.blocks} blocks of {schedule.program.block_size}"


def _paper_text(schedule: Schedule) -> str:
    """What the paper's own construction takes, and how it compares with ours; or which stage it does not cover."""
    calls = program_claim(schedule).paper_calls
    if calls is None:
        missing = next(claim.stage for claim in stage_claims(schedule) if claim.paper is None)
        return f"the paper has no construction for the mask of {missing}"
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
