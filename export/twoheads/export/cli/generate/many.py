"""Many prompts of a file, continued at the same time: a line of JSON for each as it is done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import print_note, print_warning, seconds_text
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.json_codec import finite_numbers
from twoheads.graphs.serialization.read_json import parse_json
from twoheads.runtime.generation.choosing.settings import Settings

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle
    from twoheads.runtime.generation.batch.request import Request

__all__ = ["Line", "continue_lines", "read_lines"]

PROMPTS = ("prompt", "messages", "tokens")
"""What a line continues: one of these."""

ID = "id"

OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "stop": (str, list),
    "seed": int,
    "ignore_eos": bool,
    "json_schema": (str, dict),
    "regex": str,
    "grammar": str,
}
"""What a line may say beside the fields of settings."""

SETTINGS = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of the file.

    Attributes:
        where: How errors call it.
        prompt: A text, messages or tokens.
        options: Its own, which replace those of the command.
        id: What it is called in the output, if anything.
    """

    where: str
    prompt: Any
    options: Mapping[str, Any]
    id: Any = None


def read_lines(path: Path) -> list[Line]:
    """The prompts of a file: each line a JSON string, or an object with ``prompt``, ``messages`` or ``tokens``.

    Other fields of an object are options of ``generate``; ``id`` is given back.

    Raises:
        InputError: The file can't be read or is empty, or a line is nothing of that; it is named.
    """
    lines = arguments.read_text(path).splitlines()
    return [_line(f"{path}:{at}", text) for at, text in enumerate(lines, start=1) if text.strip()]


def _line(where: str, text: str) -> Line:
    given = parse_json(text.encode(), where, fix='quote texts: "Once", or {"prompt": "Once"}')
    if isinstance(given, str):
        return Line(where, given, {})
    named = [name for name in PROMPTS if isinstance(given, dict) and name in given]
    if len(named) != 1:
        raise InputError(where, "is no prompt", f"give a text, or an object with one of {', '.join(PROMPTS)}")
    prompt = given[named[0]]
    members = {"messages": dict, "tokens": int}.get(named[0], str)
    if not isinstance(prompt, str if members is str else list) or not all(isinstance(one, members) for one in prompt):
        raise InputError(where, f"has no {named[0]}", "give a text, or a list of messages or of tokens")
    own = {name: value for name, value in given.items() if name not in (named[0], ID)}
    for name, value in own.items():
        if not isinstance(value, OPTIONS.get(name, object)) or (name not in OPTIONS and name not in SETTINGS):
            raise InputError(where, f"has {name} = {json.dumps(value)}", f"options: {', '.join((*OPTIONS, *SETTINGS))}")
    return Line(where, prompt, own, given.get(ID))


def continue_lines(loaded: LoadedBundle, lines: list[Line], at_once: int, options: Mapping[str, Any]) -> None:
    """Continues all lines, ``at_once`` at a time, and prints each as JSON when it is done.

    Args:
        loaded: The bundle.
        lines: The prompts.
        at_once: How many are computed at the same time.
        options: Of every line that does not say otherwise.

    Raises:
        InputError: A line has an option that it can't have; it is named, and nothing is computed.
        Exit: Some line failed.
    """
    with loaded.open_batch(at_once) as batch:
        waiting: dict[Request, Line] = {}
        for line in lines:
            try:
                waiting[batch.submit(line.prompt, **{**options, **line.options})] = line
            except InputError as error:
                raise InputError(f"{line.where}: {error.where}", error.problem, error.fix) from error
        numbers = {request: at for at, request in enumerate(waiting)}
        failed = new = 0
        began = time.perf_counter()
        while not batch.idle:
            new += len(batch.step())
            for request in [request for request in waiting if request.finished]:
                failed += _tell(request, numbers[request], waiting.pop(request))
    spent = max(time.perf_counter() - began, 1e-9)
    print_note(f"{len(lines)} prompts, {new} tokens in {seconds_text(spent)}: {new / spent:.1f} tokens/s")
    if failed:
        print_warning(f"{failed} of {len(lines)} prompts failed; their lines have an error")
        raise typer.Exit(1)


def _tell(request: Request, index: int, line: Line) -> bool:
    """Prints the line of a request that is done; whether it failed."""
    told: dict[str, Any] = {"index": index} | ({} if line.id is None else {ID: line.id})
    try:
        told |= request.result().as_json()
    except InputError as error:
        told["error"] = str(error)
    sys.stdout.write(json.dumps(finite_numbers(told), allow_nan=False) + "\n")
    sys.stdout.flush()
    return "error" in told
