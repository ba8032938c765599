"""What ``twoheads plan --workers`` tells: a run on several numbers of machines, and under other attention policies."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twoheads.export.cli.plan.report import length_text
from twoheads.export.cli.shared.console import print_facts, print_table, seconds_text, size_text
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.policy import parse_policy
from twoheads.graphs.prediction.device_profile import DeviceProfile
from twoheads.graphs.prediction.many_machines import WorkersPlan, plan_workers
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.variants.impose_policy import impose_policy

__all__ = ["Scaling", "parse_workers", "print_scalings", "scale", "scalings_to_json"]

MOST_WORKERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Scaling:
    """One policy on several numbers of workers.

    Attributes:
        attention: The policy's text; that of the bundle itself where nothing was imposed.
        one: On one worker, what speed-ups refer to.
        plans: In the order asked for.
    """

    attention: str
    one: WorkersPlan
    plans: tuple[WorkersPlan, ...]

    def speed_up(self, plan: WorkersPlan) -> float:
        """How many times as fast as one worker."""
        return self.one.seconds / plan.seconds


def parse_workers(text: str) -> tuple[int, ...]:
    """Numbers of workers: ``16``, ``1,2,8``, or ``8..1024``: 8, doubled until 1024.

    Raises:
        InputError: Neither of these, none, or more than a million.
    """
    found = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", text)
    numbers = [int(number) for number in found.groups()] if found else _listed(text)
    if min(numbers) < 1 or max(numbers) > MOST_WORKERS or (found and numbers[0] > numbers[1]):
        raise InputError(f"--workers {text}", f"is not 1 to {MOST_WORKERS} workers, ascending", "give e.g. 8..1024")
    if not found:
        return tuple(dict.fromkeys(numbers))
    first, last = numbers
    doubled = [first << step for step in range(MOST_WORKERS.bit_length()) if first << step < last]
    return (*doubled, last)


def _listed(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(
            f"--workers {text}", "is neither numbers of workers nor a range", "give e.g. 8..1024 or 1,2,8"
        ) from None


def scale(
    program: Program,
    expand: Callable[[Program], Schedule],
    profile: DeviceProfile,
    *,
    workers: Sequence[int],
    threads: int,
    policies: Sequence[str],
) -> list[Scaling]:
    """Predicts the program as it is, and then under every policy, on every number of workers.

    Raises:
        CompileError: A text is no policy, or one that a layer can't have.
        InputError: The profile lacks an engine that a run calls.
    """
    programs = {"as compiled": program}
    programs |= {str(policy): impose_policy(program, policy) for policy in map(parse_policy, policies)}
    scalings: list[Scaling] = []
    for name, imposed in programs.items():
        schedule = expand(imposed)
        one = plan_workers(schedule, profile, 1, threads)
        plans = tuple(one if count == 1 else plan_workers(schedule, profile, count, threads) for count in workers)
        scalings.append(Scaling(name, one, plans))
    return scalings


def scalings_to_json(scalings: Sequence[Scaling]) -> list[dict[str, Any]]:
    """The table's figures, unrounded; sizes in bytes, times in seconds."""
    return [
        {"attention": scaling.attention}
        | dataclasses.asdict(plan)
        | {"efficiency": plan.efficiency, "speed_up": scaling.speed_up(plan)}
        for scaling in scalings
        for plan in scaling.plans
    ]


def print_scalings(schedule: Schedule, profile: DeviceProfile, scalings: Sequence[Scaling]) -> None:
    """The table for people."""
    threads, network = scalings[0].one.threads, profile.network
    print_facts(
        (
            ("model", schedule.program.name),
            ("length", length_text(schedule)),
            ("output", schedule.output),
            ("worker", f"{threads} thread{'s' * (threads > 1)} of {profile.machine}"),
            (
                "network",
                f"{size_text(int(network.bytes_per_second))} a second into a worker, "
                f"{seconds_text(network.round_seconds)} to start a stage",
            ),
        )
    )
    priced = profile.price_per_hour is not None
    columns = (
        "attention",
        ">workers",
        ">calls",
        ">read",
        ">sent",
        ">copied",
        ">memory",
        ">time",
        ">speed-up",
        ">efficiency",
    )
    print_table(
        "\nof the worker with most to do (sent: on average)",
        (*columns, *((">cost",) if priced else ())),
        [_row(scaling, plan) for scaling in scalings for plan in scaling.plans],
    )


def _row(scaling: Scaling, plan: WorkersPlan) -> tuple[str, ...]:
    cost = () if plan.cost is None else (f"{plan.cost:.3g}",)
    return (
        scaling.attention,
        str(plan.workers),
        str(plan.calls),
        size_text(plan.read_bytes),
        size_text(plan.sent_bytes),
        size_text(plan.copied_bytes),
        size_text(plan.memory_bytes),
        seconds_text(plan.seconds),
        f"{scaling.speed_up(plan):.3g}",
        f"{plan.efficiency:.0%}",
        *cost,
    )
