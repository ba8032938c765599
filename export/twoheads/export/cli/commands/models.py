"""``twoheads models``: what is known to compile, and what is refused and why."""

import json
from importlib.resources import files
from typing import Annotated, Any

import typer

from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_json, print_table, print_text
from twoheads.graphs.errors import InputError

__all__ = ["command"]

HEADINGS = ("family", "front door", "masks", "lowering", "error / noise floor")


def command(
    family: Annotated[str, typer.Argument(help="Show only families with this in their name, e.g. llama.")] = "",
    refused: Annotated[
        bool, typer.Option("--refused", help="Show the models that are refused, with the reasons.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the model families that were compiled and compared with the original, as measured.

    A model that is not listed may compile as well: these are the ones that were tried.

    Example: twoheads models gemma
    """
    rows = [row for row in _coverage()["rows"] if family.lower() in row["name"].lower()]
    if not rows:
        raise InputError("family", f"no tried model has {family!r} in its name", "list all with: twoheads models")
    if as_json:
        print_json(rows)
        return
    exact = [row for row in rows if row["refusal"] is None]
    if exact and not refused:
        print_table(f"{len(exact)} compiled", HEADINGS, map(_cells, exact))
    stopped = [row for row in rows if row["refusal"] is not None]
    if stopped and (refused or not exact):
        print_table(f"{len(stopped)} refused", ("family", "front door", "reason"), map(_refusal_cells, stopped))
    elif stopped:
        print_text(f"{len(stopped)} are refused with a reason: twoheads models --refused")


def _coverage() -> dict[str, Any]:
    text = (files("twoheads.export") / "coverage.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return row["family"], _made_by(row), ", ".join(row["masks"]), row["lowering"], f"{row['ratio']:.1f}"


def _refusal_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return row["family"], _made_by(row), row["refusal"]


def _made_by(row: dict[str, Any]) -> str:
    """The front door, and the class or the program that the model is from."""
    return f"{row['door']}: {row['maker']}"
