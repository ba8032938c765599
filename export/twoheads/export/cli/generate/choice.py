"""The options that say how tokens are chosen, and their meaning as fields of generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.shared import arguments
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.read_json import parse_json

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle

__all__ = [
    "DEFAULT_TOKENS",
    "Cache",
    "ChoiceOptions",
    "Fields",
    "MaxNewTokens",
    "Pages",
    "Seed",
    "Stop",
    "keep_prefixes",
]

CACHE_BYTES = 256 << 20
"""Of beginnings of texts in memory; on disk there are as many as were computed."""

DEFAULT_TOKENS = 128
"""New tokens where neither the command nor the model says how many."""

SHAPES = ("temperature", "top_k", "top_p", "min_p")
"""Fields that shape what samples are drawn from."""

MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, metavar="N", help="The most tokens to generate.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Stop at this text; may be repeated.")]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Draw the same tokens again: the seed of the random numbers.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", help="Keep the keys and values of common beginnings in this folder, and reuse them."
    ),
]
Pages = Annotated[
    str | None,
    typer.Option(
        "--pages",
        metavar="<int8|int8-steps>",
        help="Keep whole blocks of keys and values in 8 bits, or let steps of one token read them so: approximations.",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=JSON", help="Any other field of generation_config.json, e.g. typical_p=0.9."),
]


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """How the next token is chosen; what is not given, the model says."""

    do_sample: Annotated[
        bool | None,
        typer.Option(
            "--do-sample/--greedy",
            help="Draw tokens, or take the most likely one; by default what generation_config.json says.",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="Divides the logits before tokens are drawn: above 1 more varied, below 1 less."
        ),
    ] = None
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the K most likely tokens; 0 for all.")] = None
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from the most likely tokens whose probabilities add up to this."),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", help="Draw from tokens at least this likely, as a share of the most likely one's probability."
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1: makes tokens that came before less likely.")
    ] = None

    def settings(self, others: list[str] | None, **named: Any) -> dict[str, Any]:
        """The fields of generation settings that a command line sets.

        Args:
            others: What ``--set`` gives.
            **named: Options of their own beside these, by the field's name; ``None`` where they are not given.

        Raises:
            InputError: One of ``others`` is no field with a value, or is given twice; or samples are shaped and not
                drawn.
        """
        made = _settings(others, asdict(self) | named)
        if made.get("do_sample") is False and any(name in made for name in SHAPES):
            problem = "takes the most likely token, and an option shapes samples"
            raise InputError("--greedy", problem, "leave one of them out")
        return made


def _settings(others: list[str] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that ``--set`` gives, beside those that have options of their own."""
    made = {name: value for name, value in named.items() if value is not None}
    for entry in others or ():
        name, equals, text = entry.partition("=")
        if not equals or name in made:
            problem = "is set twice" if equals else "has no value"
            raise InputError(f"--set {entry}", problem, "give FIELD=JSON once")
        made[name] = parse_json(
            text.encode(errors="surrogateescape"), f"--set {name}", fix='texts need quotes: name="text"'
        )
    return made


def keep_prefixes(loaded: LoadedBundle, folder: Path | None) -> None:
    """Lets the bundle take over the beginnings of texts from ``folder``, and leave its own there.

    Raises:
        InputError: The folder can't be made, or is a bundle's.
    """
    if folder is not None:
        place = folder.resolve()
        arguments.refuse_bundles(folder / "*.page", (place, *place.parents))
        loaded.generation.keep_prefixes(CACHE_BYTES, folder)
