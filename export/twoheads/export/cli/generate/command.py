"""``twoheads generate``: a prompt and how a model goes on, token by token."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.generate import choice
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_json, print_note, print_warning, seconds_text, size_text
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import read_bundle

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle
    from twoheads.runtime.generation.results import Generated, Piece

__all__ = ["NAME", "command"]

NAME = "generate"


def command(
    bundle: options.Bundle,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="What to continue.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Or a text file; of .json, messages.")
    ] = None,
    tokens: options.Tokens = None,
    max_new_tokens: choice.MaxNewTokens = None,
    ignore_eos: choice.IgnoreEos = False,
    do_sample: choice.DoSample = None,
    temperature: choice.Temperature = None,
    top_k: choice.TopK = None,
    top_p: choice.TopP = None,
    min_p: choice.MinP = None,
    repetition_penalty: choice.RepetitionPenalty = None,
    no_repeat_ngram_size: choice.NoRepeatNgramSize = None,
    stop: choice.Stop = None,
    seed: choice.Seed = None,
    fields: choice.Fields = None,
    cache: choice.Cache = None,
    speculate: Annotated[
        bool,
        typer.Option("--speculate", help="Guess tokens that came before: copies come faster."),
    ] = False,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", metavar="FILE", help="Let the text be JSON of this schema.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option("--regex", metavar="EXPR", help="Let the whole text match this expression.")
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option("--grammar", metavar="FILE", help="Let it follow this grammar, in Lark's form.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of the kernels; all cores if not given.")
    ] = None,
    backend: options.BackendOption = options.Backend.ONNXRUNTIME,
    precision: options.PrecisionOption = options.Precision.F32,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt, and print the text as it comes.

    How tokens are chosen is what the model's generation_config.json says, unless an option says otherwise; the fields
    and their meanings are those of transformers. A .json file holds the messages of a conversation.

    Example: twoheads generate smollm2.bundle --prompt "Once upon a time" --max-new-tokens 100 --do-sample --seed 1
    """
    read_bundle(bundle, check="size")
    given = settings_of_command(
        fields,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
    )
    content = _content(prompt, file, tokens)

    from twoheads.runtime import load

    loaded = load(bundle, backend=backend.value, precision=precision.value, threads=threads)
    choice.keep_prefixes(loaded, cache)
    _default_length(loaded, given)
    made = loaded.generate(
        content,
        stop=stop,
        seed=seed,
        ignore_eos=ignore_eos,
        speculate=speculate,
        json_schema=None if json_schema is None else arguments.read_text(json_schema),
        regex=regex,
        grammar=None if grammar is None else arguments.read_text(grammar),
        streamer=None if as_json else _print,
        **given,
    )
    results = made if isinstance(made, list) else [made]
    for warning in results[0].warnings:
        print_warning(warning)
    if as_json:
        print_json(results[0].as_json() if len(results) == 1 else [result.as_json() for result in results])
        return
    sys.stdout.write("\n")
    for result in results:
        print_note(summary(result))


def settings_of_command(fields: list[str] | None, **named: Any) -> dict[str, Any]:
    """The fields that a command line sets; see :func:`~twoheads.export.cli.generate.choice.settings_of`."""
    shapes = ("temperature", "top_k", "top_p", "min_p")
    made = choice.settings_of(fields, **named)
    if made.get("do_sample") is False and any(name in made for name in shapes):
        raise InputError(
            "--greedy", "takes the most likely token, and an option shapes samples", "leave one of them out"
        )
    return made


def _content(prompt: str | None, file: Path | None, tokens: Path | None) -> Any:
    """What to continue."""
    if sum(given is not None for given in (prompt, file, tokens)) != 1:
        raise InputError("twoheads generate", "needs one prompt", "give --prompt TEXT, --file F or --tokens F.npy")
    if tokens is not None:
        return arguments.read_tokens(tokens)
    if file is None:
        return prompt
    text = arguments.read_text(file)
    if file.suffix != ".json":
        return text
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise InputError(str(file), f"is not JSON ({error})", "give a list of messages") from None
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise InputError(str(file), "is no conversation", 'give a list of {"role": ..., "content": ...}')
    return messages


def _default_length(loaded: "LoadedBundle", given: dict[str, Any]) -> None:
    own = loaded.generation.settings
    if not {"max_new_tokens", "max_length"} & given.keys() and own.max_new_tokens is None and own.max_length is None:
        given["max_new_tokens"] = choice.DEFAULT_TOKENS


def _print(piece: "Piece") -> None:
    sys.stdout.write(piece.text)
    sys.stdout.flush()


def summary(made: "Generated") -> str:
    """One line about a continuation."""
    count = len(made.tokens)
    guesses = f", {made.right_guesses} of {made.guessed_tokens} guesses right" if made.guessed_tokens else ""
    return (
        f"{made.prompt_tokens} + {count} tokens ({made.finish_reason}), the first after "
        f"{seconds_text(made.first_token_seconds)}, then {made.tokens_per_second:.1f} tokens/s, "
        f"{made.engine_calls} calls, peak {size_text(made.peak_bytes)}{guesses}"
    )
