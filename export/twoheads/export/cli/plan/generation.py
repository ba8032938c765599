"""``twoheads plan --generate``: the calls, the memory and, by a profile, the time of a continuation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twoheads.export.cli.plan.device import device_threads, read_device
from twoheads.export.cli.plan.options import PlanOptions
from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import print_facts, print_json, seconds_text, size_text
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.generation import predict_generation
from twoheads.graphs.program.axes import axis_length
from twoheads.graphs.program.lengths import resolve_lengths
from twoheads.graphs.program.program import TOKENS, Program
from twoheads.graphs.schedule.schedule import SOURCE, make_schedule
from twoheads.graphs.variants.decoder import source_values
from twoheads.graphs.variants.step_calls import GenerationPlan, generation_plan, planned_steps

__all__ = ["plan_generation"]


def plan_generation(program: Program, asked: PlanOptions, precision: str | None) -> None:
    """Prints it.

    Args:
        program: What generates.
        asked: The prompt, and what to tell.
        precision: In what the bundle's values and weights are, if it is one.

    Raises:
        InputError: The model generates nothing, or other options are given that have no meaning here.
    """
    others = (asked.output, asked.positions, asked.memory_limit, asked.scaling.workers)
    if any(option is not None for option in others) or asked.length is None or asked.generate is None:
        raise InputError("--generate", "plans one prompt of --length tokens", "leave out the other options")
    given = arguments.parse_lengths(asked.length)
    source, encoder_calls = source_values(program), 0
    if not source and not isinstance(given, int):
        raise InputError("--generate", "plans one prompt of --length tokens", "give one length")
    lengths = resolve_lengths(program, given)
    if source:
        encoder_calls = make_schedule(program, lengths, output=SOURCE).engine_calls
    rows = axis_length(source[0].axis or "", lengths) if source else 0
    plan = generation_plan(program, lengths[TOKENS], asked.generate, rows)
    kept = " and ".join(dict.fromkeys(entry.value.dtype for entry in planned_steps(program).kept))
    timed = None if asked.device is None else _timed(program, asked.device, asked.threads, plan)
    if asked.as_json:
        told: dict[str, Any] = asdict(plan) | {"encoder_calls": encoder_calls, "kept_dtype": kept}
        told |= {} if precision is None else {"precision": precision}
        print_json(told | ({} if timed is None else {"device": timed}))
        return
    print_facts(
        (
            ("tokens", f"{plan.prompt_tokens} and {plan.new_tokens} new ones, in blocks of {program.block_size}"),
            *((("encoder", f"{rows} tokens, {encoder_calls} calls"),) if source else ()),
            ("calls for the prompt", str(plan.prompt_calls)),
            ("calls behind it", f"{plan.step_calls}, of which the last token takes {plan.last_step_calls}"),
            ("keys and values", size_text(plan.kept_bytes) + (f", {kept}" if kept else "")),
            *(() if precision is None else (("precision", precision),)),
            *(() if timed is None else (("time", _time_text(timed)),)),
        )
    )


def _timed(program: Program, device: Path, asked: int | None, plan: GenerationPlan) -> dict[str, Any]:
    """The seconds that it takes by the profile in ``device``, as entries of JSON."""
    profile = read_device(device, program)
    threads = device_threads(device, profile, asked)
    found = predict_generation(planned_steps(program), profile, plan.prompt_tokens, plan.new_tokens, threads)
    return {"machine": profile.machine, "threads": threads} | asdict(found)


def _time_text(timed: Mapping[str, Any]) -> str:
    rate, threads = timed["tokens_per_second"], timed["threads"]
    later = (
        "" if rate is None else f", then {rate:.1f} tokens/s (the last in {seconds_text(timed['last_token_seconds'])})"
    )
    workers = f"{threads} thread{'s' * (threads > 1)} of {timed['machine']}"
    return f"the first token after {seconds_text(timed['first_token_seconds'])}{later} with {workers}"
