"""What is known of each accelerator's compiler, from the data files in ``twoheads/export/accelerators/targets``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.json_codec import from_json

__all__ = ["Rule", "Target", "choose", "load_target", "target_names"]

FOLDER = "targets"


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that a compiler can't take, or not on the accelerator.

    Attributes:
        rule: ``operator``; ``dtype`` (of any port); or what may not be above ``limit``: ``rank``, ``axis``,
            ``elements``, ``plane`` (the product of the last two axes) of any port, ``mask`` (elements of a mask input).
        operators: The operators that it is about; none for all.
        dtypes: For ``dtype``, which.
        limit: The largest number that is fine.
        effect: ``refused``, ``host`` or ``wrong``.
        remedy: What to do about it.
        source: How it is known: ``measured`` with this version, or ``reported`` by others.
    """

    rule: str
    operators: tuple[str, ...]
    dtypes: tuple[str, ...]
    limit: int | None
    effect: str
    remedy: str
    source: str


@dataclass(frozen=True, slots=True)
class Target:
    """One accelerator and its compiler.

    Attributes:
        name: As on the command line.
        title: For people.
        module: The program in ``build/compilers`` that drives the compiler.
        packages: What the compiler's environment needs, as pip takes it.
        precisions: In what it computes; the first unless told otherwise.
        typed: Whether it computes in the types of the model, which are changed for a precision, instead of being told.
        devices: For which of them ``build --device`` builds, by the compiler's own names; the first unless told
            otherwise. Empty where the compiler has no choice.
        emulator: What runs its artifacts on this machine; ``None`` if nothing does.
        lowering: How attention is lowered for it by ``compile --for NAME``: ``tile``, or ``stock`` where the reductions
            of a tile engine are left to the host.
        hidden_score: What int8 artifacts add to the score of a hidden key, where minus infinity would take all
            of 8 bits; ``None`` to leave it.
        highest_opset: The newest ONNX operator set that it reads; ``None`` if it reads ours.
        widest_product: Columns of a product with a constant weight that stay on the accelerator; ``None`` for any.
        checked_with: The compiler's version with which the rules were measured.
        rules: What it can't take.
        weights_in_model: Whether weights of 8 or 4 bits are written into the model, as operators that it knows.
        exponent_bound: The magnitude to which half-precision artifacts clip what ``Exp`` takes, where the accelerator's
            is wrong beyond; ``None`` to leave it.
    """

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    typed: bool
    devices: tuple[str, ...]
    emulator: str | None
    lowering: str
    hidden_score: float | None
    highest_opset: int | None
    widest_product: int | None
    checked_with: str
    rules: tuple[Rule, ...]
    weights_in_model: bool = False
    exponent_bound: float | None = None


def target_names() -> tuple[str, ...]:
    """Every target there is a data file for, in alphabetical order."""
    folder = files("twoheads.export.accelerators") / FOLDER
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_target(name: str, asked_by: str = "--target") -> Target:
    """The target called ``name``, by an option or a command whose name a refusal repeats.

    Raises:
        InputError: There is none.
    """
    if name not in target_names():
        raise InputError(asked_by, f"{name!r} is unknown", f"use one of: {', '.join(target_names())}")
    text = (files("twoheads.export.accelerators") / FOLDER / f"{name}.json").read_text(encoding="utf-8")
    return from_json(Target, json.loads(text), name)


def choose(option: str, asked: str | None, known: tuple[str, ...], name: str) -> str:
    """What was asked for of the target ``name``, or the first that is known.

    Raises:
        InputError: It is not known.
    """
    if asked is None:
        return known[0]
    if asked not in known:
        fix = f"use one of: {', '.join(known)}" if known else "leave it out"
        raise InputError(option, f"{name} has no {asked} here", fix)
    return asked
