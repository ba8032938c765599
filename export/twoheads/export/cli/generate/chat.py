"""``twoheads chat``: a conversation with a bundle."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.generate.choice import (
    Cache,
    ChoiceOptions,
    Fields,
    MaxNewTokens,
    Pages,
    Seed,
    Stop,
    keep_prefixes,
)
from twoheads.export.cli.generate.opened import EngineOptions
from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_note, print_warning, seconds_text
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import require_bundle

if TYPE_CHECKING:
    from twoheads.runtime.generation.generated import Generated

__all__ = ["ChatOptions", "command"]

ANSWER = 1024
"""New tokens of an answer where nobody says how many."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the model is told first, how its tokens are chosen, and what runs the engines."""

    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system message, which the model is told first.")
    ] = None
    max_new_tokens: MaxNewTokens = None
    choice: ChoiceOptions = field(default_factory=ChoiceOptions)
    stop: Stop = None
    seed: Seed = None
    fields: Fields = None
    cache: Cache = None
    pages: Pages = None
    engines: EngineOptions = field(default_factory=EngineOptions)


@takes_options
def command(bundle: options.Bundle, asked: ChatOptions) -> None:
    """Chat with a model, one line a turn, by its own chat template. An empty line or the end of the input ends it.

    Keys and values of the conversation are kept, so a turn computes only what is new.

    Example: twoheads chat smollm2.bundle --system "Answer briefly."
    """
    require_bundle(bundle)  # a wrong path is told before anything else
    given = asked.choice.settings(asked.fields, max_new_tokens=asked.max_new_tokens or ANSWER)
    loaded = asked.engines.load(bundle)
    if not loaded.generation.model.facts.chat_templates:
        raise InputError(str(bundle), "has no chat template", "give a prompt to `twoheads generate`")
    keep_prefixes(loaded, asked.cache)
    messages: list[dict[str, str]] = []
    if asked.system is not None:
        messages.append({"role": "system", "content": asked.system})
    with loaded.open_context(pages=asked.pages) as context:
        while line := _read_line():
            messages.append({"role": "user", "content": line})
            made: Any = loaded.generate(
                messages,
                context=context,
                stop=asked.stop,
                seed=asked.seed,
                streamer=lambda piece: _say(piece.text),
                **given,
            )
            _tell(made, len(context))
            messages.append({"role": "assistant", "content": made.text})


def _read_line() -> str:
    """A turn of the user; empty at the end."""
    if sys.stdin.isatty():
        _say("> ")
    return sys.stdin.readline().strip()


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(made: Generated, length: int) -> None:
    _say("\n")
    for warning in made.warnings:
        print_warning(warning)
    print_note(
        f"{len(made.tokens)} tokens, the first after {seconds_text(made.first_token_seconds)}, then "
        f"{made.tokens_per_second:.1f} tokens/s; {length} tokens of context"
    )
