"""Who reads which weight of a program: what passes over weights ask before they change one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from twoheads.graphs.program.program import ExpertsStage, Program, TokenwiseEngine, TokenwiseStage

__all__ = ["Readers", "attention_weights", "bindings", "by_form", "disagreeing", "token_ports", "weight_readers"]

Bound = TypeVar("Bound", bound=TokenwiseStage | ExpertsStage)

Readers = Mapping[str, list[tuple[str, str]]]
"""For each weight the ports that it is bound to, as (engine, port)."""


def bindings(program: Program) -> Iterator[tuple[TokenwiseStage, TokenwiseEngine, bool]]:
    """Every token-wise stage with its engine, and whether it is the head's."""
    for stage, engine in program.bindings:
        yield stage, engine, stage in program.head


def weight_readers(program: Program) -> Readers:
    """The ports of token-wise engines that every weight is bound to."""
    readers: dict[str, list[tuple[str, str]]] = {}
    for stage, engine, _ in bindings(program):
        for port, name in zip(engine.weights, stage.weights, strict=True):
            readers.setdefault(name, []).append((engine.name, port.name))
    return readers


def attention_weights(program: Program) -> set[str]:
    """The weights that no token-wise engine reads: learned sinks and biases, what states are computed with, experts."""
    found = [*(stage.weights for stage in program.attentions), *(stage.weights for stage in program.scans)]
    found += [stage.weights for stage in program.mixtures]
    return {name for names in found for name in names}


def token_ports(program: Program, engine: TokenwiseEngine) -> set[str]:
    """The engine's ports that are the caller's arguments in every stage."""
    arguments = {entry.value.name for entry in program.inputs if entry.source == "argument"}
    found = {port.name for port in engine.inputs}
    for stage, used, _ in bindings(program):
        if used.name == engine.name:
            found -= {p.name for p, value in zip(engine.inputs, stage.inputs, strict=True) if value not in arguments}
    return found


def by_form(program: Program, plans: Mapping[str, Hashable]) -> tuple[Program, Mapping[str, str]]:
    """The program with an engine for every form in which stages of one have their weights, and what each is a copy of.

    Layers of a file that mixes formats share an engine no longer: a port's weights are stored in one way.

    Args:
        program: Whose engines of token-wise regions and of experts are split.
        plans: How weights are to be stored, by name; those that stay as they are are absent.
    """
    forms: dict[str, dict[tuple[Hashable, ...], str]] = {}
    for stage in (*program.body, *program.head):
        if isinstance(stage, TokenwiseStage | ExpertsStage):
            names = forms.setdefault(stage.engine, {})
            copy = f"{stage.engine}_{len(names)}" if names else stage.engine
            names.setdefault(tuple(map(plans.get, stage.weights)), copy)

    def bound(stage: Bound) -> Bound:
        return replace(stage, engine=forms[stage.engine][tuple(map(plans.get, stage.weights))])

    copies = {engine.name: forms.get(engine.name, {}).values() or (engine.name,) for engine in program.engines}
    split = replace(
        program,
        engines=tuple(replace(engine, name=name) for engine in program.engines for name in copies[engine.name]),
        body=tuple(bound(s) if isinstance(s, TokenwiseStage | ExpertsStage) else s for s in program.body),
        head=tuple(map(bound, program.head)),
    )
    return split, {name: engine for engine, names in copies.items() for name in names}


def disagreeing(readers: Readers, plans: Mapping[str, Hashable]) -> set[str]:
    """The planned weights that share a port with one that is stored differently."""
    ports: dict[tuple[str, str], set[Hashable]] = {}
    for name, places in readers.items():
        for place in places:
            ports.setdefault(place, set()).add(plans.get(name))
    return {name for name in plans if any(len(ports[place]) > 1 for place in readers[name])}
