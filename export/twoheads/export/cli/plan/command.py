"""``twoheads plan``: what a run of one length will cost, before anything is built or run."""

from __future__ import annotations

import gc
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from twoheads.export.cli.plan.device import device_threads, measured_tiles, read_device, time_fact, time_to_json
from twoheads.export.cli.plan.generation import plan_generation
from twoheads.export.cli.plan.options import PlanOptions, SourceOptions
from twoheads.export.cli.plan.plot import check_plot, plot_scalings
from twoheads.export.cli.plan.report import print_schedule, schedule_facts, schedule_to_json, spill_to_json
from twoheads.export.cli.plan.workers import parse_workers, print_scalings, scale, scalings_to_json
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_facts, print_json
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.shared.spill_line import spill_line
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import DeviceProfile
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.lengths import resolve_lengths, value_rows
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.head_columns import head_columns, limited_schedule
from twoheads.graphs.schedule.schedule import Schedule, make_schedule
from twoheads.graphs.schedule.spill import NOTHING_SPILLED, plan_spill
from twoheads.graphs.variants.choose import FusedPrograms, fused_programs
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.bundle.signature import required_key
from twoheads.runtime.execution.crew import available_threads

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class _Run:
    """The run to plan: programs, lengths by axis, rows of which output, on how many threads; a bundle's formats."""

    fused: FusedPrograms
    columns: Program | None
    lengths: Mapping[str, int]
    output: str | None
    positions: int | None
    threads: int
    profile: DeviceProfile | None
    precision: str | None

    def schedule(self, program: Program) -> Schedule:
        """The schedule of ``program``, which is that of the bundle or one made of it."""
        return make_schedule(program, self.lengths, output=self.output, positions=self.positions, workers=self.threads)


@takes_options
def command(
    subject: Annotated[
        Path, typer.Argument(metavar="SOURCE|BUNDLE", help="A model that is not compiled yet, or a bundle.")
    ],
    asked: PlanOptions,
) -> None:
    """Tell the engine calls of a run of N tokens, the formula they follow, FLOPs, bytes and memory. Nothing is run.

    Leave the length out where the inputs have a fixed size, such as images. With --memory-limit, see what a run with
    that limit keeps in files, or that it is refused, with the numbers. With --device, see the time too; with --workers,
    the time on several such machines. With --generate N, plan N new tokens after a prompt of that length.

    Example: twoheads plan smollm2.bundle --length 100000 --device here.json --workers 1..64
    """
    arguments.require_path(subject, "a model or a bundle")
    if asked.scaling.plot is not None:
        check_plot(asked.scaling.plot)
    if asked.generate is not None:
        plan_generation(_programs(subject, asked.source, asked.device)[0].program, asked, _precision(subject))
        return
    run = _run_of(subject, asked)
    if asked.scaling.workers is not None and run.profile is not None:
        _plan_workers(run, run.profile, asked)
    else:
        _plan_one(run, asked)


def _run_of(subject: Path, asked: PlanOptions) -> _Run:
    given = {} if asked.length is None else arguments.parse_lengths(asked.length)
    whole = not arguments.is_bundle(subject) and asked.source.lowering is options.Lowering.WHOLE
    only = given if whole and isinstance(given, int) else None
    fused, columns = _programs(subject, asked.source, asked.device, only)
    program = fused.program
    lengths = resolve_lengths(program, {} if only is not None else given)
    hidden = value_rows(program.value(program.hidden), lengths)
    rows = None if asked.positions is None else int(arguments.parse_positions(asked.positions, hidden).size)
    profile = None if asked.device is None else read_device(asked.device, program)
    threads = asked.threads or available_threads()
    if asked.device is not None and profile is not None:
        threads = device_threads(asked.device, profile, asked.threads)
    output = asked.output.value if asked.output else None
    return _Run(fused, columns, lengths, output, rows, threads, profile, _precision(subject))


def _precision(subject: Path) -> str | None:
    """In what a bundle's values and weights are; ``None`` of what is not compiled yet."""
    if not arguments.is_bundle(subject):
        return None
    return read_bundle(subject, check="size", engines=False).manifest.precision


def _plan_workers(run: _Run, profile: DeviceProfile, asked: PlanOptions) -> None:
    """On several numbers of machines, and under other attention policies."""
    program, schedule = run.fused.program, run.schedule(run.fused.program)
    counts, policies = parse_workers(asked.scaling.workers or ""), asked.scaling.compare or ()
    scalings = scale(program, run.schedule, profile, workers=counts, threads=run.threads, policies=policies)
    if asked.scaling.plot is not None:
        plot_scalings(asked.scaling.plot, f"{program.name}, {schedule.length} tokens", scalings)
    if asked.as_json:
        print_json(schedule_facts(schedule) | {"workers": scalings_to_json(scalings)})
    else:
        print_scalings(schedule, profile, scalings)


def _plan_one(run: _Run, asked: PlanOptions) -> None:
    """On this machine, or that of a profile."""
    limit = None if asked.memory_limit is None else arguments.parse_size(asked.memory_limit)
    program = run.fused.chosen(run.lengths) if limit is None else run.fused.program
    schedule = limited_schedule(program, run.columns, run.schedule, limit=limit, disk=True, workers=run.threads)
    spill = NOTHING_SPILLED if limit is None else plan_spill(schedule, limit=limit, disk=True, workers=run.threads)
    profile = run.profile
    if asked.as_json:
        more: dict[str, Any] = {} if limit is None else {"spill": spill_to_json(spill)}
        more |= {} if profile is None else {"device": time_to_json(schedule, profile, run.threads)}
        more |= {} if run.precision is None else {"precision": run.precision}
        print_json(schedule_to_json(schedule) | more)
        return
    print_schedule(schedule, every_stage=asked.every_stage)
    if run.precision is not None:
        print_facts((("precision", run.precision),))
    if profile is not None:
        print_facts((time_fact(predict_run(schedule, profile, run.threads), profile),))
    if limit is not None:
        print_facts((("spilling", spill_line(spill, schedule)),))


def _programs(
    subject: Path, asked: SourceOptions, device: Path | None, only: int | None = None
) -> tuple[FusedPrograms, Program | None]:
    """The programs of a bundle, or those of a source as it would be compiled; the last has its head in pieces.

    A bundle is taken with the key tiles that the device's profile was measured with; a source that is to be whole with
    its ``only`` length.
    """
    if arguments.is_bundle(subject):
        if asked != SourceOptions():
            problem = "is a bundle, whose block size, key tile, lowering, attention, experts and results are fixed"
            names = (
                "--block-size, --key-tile, --lowering, --attention, --experts, --result, --mask and --trust-remote-code"
            )
            raise InputError(str(subject), problem, f"leave {names} out, or give the source")
        bundle = read_bundle(subject, check="size", engines=False)
        chosen = bundle if device is None else measured_tiles(device, bundle)
        return chosen.fused, chosen.columns
    if required_key() is not None:
        raise InputError("--require-signature", f"is for bundles, and {subject} is none", "leave it out")
    program = _program_of(subject, asked, only)
    return fused_programs(program, asked.lowering.value, short=True), head_columns(program)


def _program_of(source: Path, asked: SourceOptions, only: int | None) -> Program:
    """The program of a source, which may have been planned before; ``only`` is the length of one that is whole."""
    from twoheads.compiler import plan_model
    from twoheads.export.cli.plan.kept_plans import keep_plan, kept_plan, plan_file

    wanted: dict[str, Any] = {
        "block_size": options.BLOCK_SIZE if asked.block_size is None else asked.block_size,
        "key_tile": asked.key_tile,
        "attention": asked.attention,
        "experts": asked.experts.value,
        "lowering": asked.lowering.value,
        "results": tuple(asked.results or ()),
        "masks": arguments.parse_masks(asked.masks),
        "length": only,
        "trust_remote_code": asked.trust_remote_code,
    }
    place = plan_file(source, wanted)
    program = kept_plan(place)
    if program is None:
        with _without_collecting(), PhaseProgress() as progress:
            program = plan_model(source, **wanted, progress=progress)
        keep_plan(place, program)
    return program


@contextmanager
def _without_collecting() -> Generator[None]:
    """Within it no garbage is looked for: among what torch loads there is none, and looking takes a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
