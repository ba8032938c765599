"""The options that say how tokens are chosen, and their meaning as fields of generation settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.graphs.errors import InputError

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle

__all__ = [
    "DEFAULT_TOKENS",
    "Cache",
    "DoSample",
    "Fields",
    "IgnoreEos",
    "MaxNewTokens",
    "MinP",
    "NoRepeatNgramSize",
    "RepetitionPenalty",
    "Seed",
    "Stop",
    "Temperature",
    "TopK",
    "TopP",
    "keep_prefixes",
    "settings_of",
]

CACHE_BYTES = 256 << 20
"""Of beginnings of texts in memory; on disk there are as many as were computed."""

DEFAULT_TOKENS = 128
"""New tokens where neither the command nor the model says how many."""

MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, metavar="N", help="The most tokens to generate.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on behind tokens that end it.")]
DoSample = Annotated[
    bool | None,
    typer.Option("--do-sample/--greedy", help="Draw tokens, or take the most likely; else as the model says."),
]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Of samples: flatter above 1.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from the K most likely; 0 for all.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Draw from the most likely of this mass.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Draw from those at least so likely beside the best.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Makes tokens that were there less likely.")
]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option("--no-repeat-ngram-size", metavar="N", help="No run of N tokens comes twice.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="A text that ends it; several times for several.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of samples, to get the same again.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Keep what beginnings of texts gave there, and take it from there."),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=JSON", help="Any other field of generation_config.json, e.g. typical_p=0.9."),
]


def keep_prefixes(loaded: LoadedBundle, folder: Path | None) -> None:
    """Lets the bundle take over the beginnings of texts from ``folder``, and leave its own there.

    Raises:
        InputError: The folder can't be made.
    """
    if folder is not None:
        loaded.generation.keep_prefixes(CACHE_BYTES, folder)


def settings_of(others: list[str] | None, **named: Any) -> dict[str, Any]:
    """The fields that a command line sets.

    Args:
        others: What ``--set`` gives.
        **named: Options of their own, by the field's name; ``None`` where they are not given.

    Raises:
        InputError: One of ``others`` is no field with a value, or is given twice.
    """
    made = {name: value for name, value in named.items() if value is not None}
    for entry in others or ():
        name, equals, text = entry.partition("=")
        if not equals or name in made:
            problem = "is set twice" if equals else "has no value"
            raise InputError(f"--set {entry}", problem, "give FIELD=JSON once")
        try:
            made[name] = json.loads(text)
        except ValueError:
            raise InputError(f"--set {entry}", f"{text!r} is not JSON", 'texts need quotes: name="text"') from None
    return made
