"""Mutations of a program that fit: names that exist, masks that are some, numbers that are near."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tools.fuzz.mutate.plain import mutated_json

__all__ = ["mutated_program"]

MASKS = (
    "causal",
    "full",
    "window(3, 0)",
    "causal & window(20, 0)",
    "causal & chunk(16)",
    "causal & (window(3, 0) | sinks(2))",
)


def mutated_program(data: bytes, draw: Random) -> bytes:
    """Half of the time as any JSON; else one that says something else of what there is."""
    if draw.random() < 0.5:
        return mutated_json(data, draw)
    tree = json.loads(data)
    stages = [*tree["body"], *tree["head"]]
    stage, other = draw.choice(stages), draw.choice(stages)
    match draw.randrange(7):
        case 0:
            for attention in (stage for stage in stages if "mask" in stage):
                attention["mask"] = draw.choice(MASKS)
        case 1 | 2:
            _swap(stage, draw)
        case 3:
            names = _values(stages)
            for key in ("query", "key", "value"):
                if key in stage and draw.random() < 0.5:
                    stage[key] = draw.choice(names)
        case 4:
            tree[draw.choice(("hidden", "logits"))] = draw.choice(_values(stages))
        case 5:
            engine = draw.choice(tree["engines"])
            numbers = [name for name, found in engine.items() if isinstance(found, int | float)]
            name = draw.choice(numbers or ["x"])
            engine[name] = draw.choice((0, 1, 2, -1, 0.5, 8, 16, 32))
        case _:
            stage["engine"], other["engine"] = other["engine"], stage["engine"]
    return json.dumps(tree).encode()


def _values(stages: list[Any]) -> list[str]:
    return [value["name"] for stage in stages for value in (*stage.get("outputs", ()), stage.get("output")) if value]


def _swap(stage: Any, draw: Random) -> None:
    """Two names of one list, or of two operands."""
    lists = [stage[name] for name in ("weights", "inputs", "outputs") if len(stage.get(name, ())) > 1]
    if lists:
        names = draw.choice(lists)
        one, other = draw.sample(range(len(names)), 2)
        names[one], names[other] = names[other], names[one]
    elif "query" in stage:
        first, second = draw.sample(("query", "key", "value"), 2)
        stage[first], stage[second] = stage[second], stage[first]
