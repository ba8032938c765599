"""``twoheads chat``: a conversation with a bundle."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.generate import choice
from twoheads.export.cli.generate.command import settings_of_command
from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_note, print_warning, seconds_text
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import read_bundle

if TYPE_CHECKING:
    from twoheads.runtime.generation.results import Generated

__all__ = ["NAME", "command"]

NAME = "chat"
ANSWER = 1024
"""New tokens of an answer where nobody says how many."""


def command(
    bundle: options.Bundle,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="What the model is told first.")
    ] = None,
    max_new_tokens: choice.MaxNewTokens = None,
    do_sample: choice.DoSample = None,
    temperature: choice.Temperature = None,
    top_k: choice.TopK = None,
    top_p: choice.TopP = None,
    min_p: choice.MinP = None,
    repetition_penalty: choice.RepetitionPenalty = None,
    stop: choice.Stop = None,
    seed: choice.Seed = None,
    fields: choice.Fields = None,
    cache: choice.Cache = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of the kernels; all cores if not given.")
    ] = None,
    backend: options.BackendOption = options.Backend.ONNXRUNTIME,
    precision: options.PrecisionOption = options.Precision.F32,
) -> None:
    """Talk to a model, one line a turn, by its own chat template. An empty line or the end of the input ends it.

    Only what is new is computed in a turn: the conversation's keys and values are kept.

    Example: twoheads chat smollm2.bundle --system "Answer briefly."
    """
    read_bundle(bundle, check="size")
    given = settings_of_command(
        fields,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens or ANSWER,
    )
    from twoheads.runtime import load

    loaded = load(bundle, backend=backend.value, precision=precision.value, threads=threads)
    if not loaded.generation.facts.chat_templates:
        raise InputError(str(bundle), "has no chat template", "give a prompt to `twoheads generate`")
    choice.keep_prefixes(loaded, cache)
    messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    with loaded.open_context() as context:
        while line := _read_line():
            messages.append({"role": "user", "content": line})
            made: Any = loaded.generate(
                messages, context=context, stop=stop, seed=seed, streamer=lambda piece: _say(piece.text), **given
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


def _tell(made: "Generated", length: int) -> None:
    _say("\n")
    for warning in made.warnings:
        print_warning(warning)
    print_note(
        f"{len(made.tokens)} tokens, the first after {seconds_text(made.first_token_seconds)}, then "
        f"{made.tokens_per_second:.1f} tokens/s; {length} tokens of context"
    )
