"""``twoheads plan --generate``: the calls and the memory of a continuation."""

from __future__ import annotations

from dataclasses import asdict

from twoheads.export.cli.plan.options import PlanOptions
from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import print_facts, print_json, size_text
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Program
from twoheads.graphs.variants.step_calls import generation_plan

__all__ = ["plan_generation"]


def plan_generation(program: Program, asked: PlanOptions) -> None:
    """Prints it.

    Raises:
        InputError: The model generates nothing, or other options are given that have no meaning here.
    """
    others = (asked.output, asked.positions, asked.memory_limit, asked.device, asked.scaling.workers)
    length = None if asked.length is None else arguments.parse_lengths(asked.length)
    if any(option is not None for option in others) or not isinstance(length, int) or asked.generate is None:
        raise InputError("--generate", "plans one prompt of --length tokens", "leave out the other options")
    plan = generation_plan(program, length, asked.generate)
    if asked.as_json:
        print_json(asdict(plan))
        return
    print_facts(
        (
            ("tokens", f"{plan.prompt_tokens} and {plan.new_tokens} new ones, in blocks of {program.block_size}"),
            ("calls for the prompt", str(plan.prompt_calls)),
            ("calls behind it", f"{plan.step_calls}, of which the last token takes {plan.last_step_calls}"),
            ("keys and values", size_text(plan.kept_bytes)),
        )
    )
