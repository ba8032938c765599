"""``twoheads generate``: a prompt and how a model goes on, token by token."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.generate.choice import (
    DEFAULT_TOKENS,
    Cache,
    ChoiceOptions,
    Fields,
    MaxNewTokens,
    Pages,
    Seed,
    Stop,
    keep_prefixes,
)
from twoheads.export.cli.generate.many import continue_lines, read_lines
from twoheads.export.cli.generate.opened import EngineOptions
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_json, print_note, print_warning, seconds_text, size_text
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.read_json import parse_json
from twoheads.runtime.bundle.reader import require_bundle
from twoheads.runtime.inputs.array_files import read_npz

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle
    from twoheads.runtime.generation.context import Context
    from twoheads.runtime.generation.generated import Generated, Piece

__all__ = ["GenerateOptions", "command"]


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What is continued, or read by the model's encoder: one of these."""

    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue.")] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="A text file to continue; a .json file holds the messages of a conversation.",
        ),
    ] = None
    tokens: options.Tokens = None
    arrays: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE.npz", help="What the model's encoder reads, as arrays by input name."),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Many prompts, one line of JSON each, which are continued at the same time; see the guide.",
        ),
    ] = None

    def read(self) -> Any:
        """A text, tokens, messages, or many of these.

        Raises:
            InputError: Not one of them is given, or a file can't be read, or is not what its option takes.
        """
        others = (self.file, self.tokens, self.arrays, self.prompts)
        if sum(given is not None for given in (self.prompt, *others)) != 1:
            fix = "give --prompt TEXT, --file F, --tokens F.npy, --input F.npz or --prompts F.jsonl"
            raise InputError("twoheads generate", "needs one prompt", fix)
        if self.prompts is not None:
            return read_lines(self.prompts)
        if self.tokens is not None:
            return arguments.read_tokens(self.tokens)
        if self.arrays is not None:
            return read_npz(arguments.require_path(self.arrays, "an .npz file"))
        if self.file is None:
            return self.prompt
        text = arguments.read_text(self.file)
        return _messages(self.file, text) if self.file.suffix == ".json" else text


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """What a model of speech is told first."""

    language: Annotated[
        str | None,
        typer.Option("--language", metavar="CODE", help="For speech: its language, e.g. en; detected by default."),
    ] = None
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="For speech: transcribe (the default) or translate.")
    ] = None

    def read(self) -> dict[str, str]:
        """The arguments of :meth:`twoheads.runtime.LoadedBundle.generate` for it."""
        given = {"language": self.language, "task": self.task}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class FormOptions:
    """What the text must be."""

    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", metavar="FILE", help="Generate JSON that this schema allows.")
    ] = None
    regex: Annotated[
        str | None,
        typer.Option("--regex", metavar="EXPR", help="Generate a text that this expression matches as a whole."),
    ] = None
    grammar: Annotated[
        Path | None,
        typer.Option("--grammar", metavar="FILE", help="Generate a text of this grammar, in Lark's syntax."),
    ] = None

    def read(self) -> dict[str, str | None]:
        """The arguments of :meth:`twoheads.runtime.LoadedBundle.generate` for it.

        Raises:
            InputError: A file can't be read.
        """
        return {
            "json_schema": None if self.json_schema is None else arguments.read_text(self.json_schema),
            "regex": self.regex,
            "grammar": None if self.grammar is None else arguments.read_text(self.grammar),
        }


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """What to continue, how its tokens are chosen, and what runs the engines."""

    given: PromptOptions = field(default_factory=PromptOptions)
    max_new_tokens: MaxNewTokens = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Continue after tokens that end a text.")] = False
    choice: ChoiceOptions = field(default_factory=ChoiceOptions)
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option("--no-repeat-ngram-size", metavar="N", help="Never repeat a run of N tokens.")
    ] = None
    stop: Stop = None
    seed: Seed = None
    fields: Fields = None
    cache: Cache = None
    at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, metavar="N", help="How many of the --prompts to compute at the same time."),
    ] = 32
    steady: Annotated[
        bool,
        typer.Option("--steady", help="Compute a single prompt as --prompts would: the same bits, but slower."),
    ] = False
    speculate: Annotated[
        bool,
        typer.Option(
            "--speculate",
            help="Guess tokens from the text so far, and check several in one call: faster where the text repeats "
            "itself.",
        ),
    ] = False
    draft: Annotated[
        Path | None,
        typer.Option(
            "--draft", metavar="BUNDLE", help="Guess with this smaller bundle instead, which has the same vocabulary."
        ),
    ] = None
    pages: Pages = None
    load_context: Annotated[
        Path | None,
        typer.Option(
            "--load-context", metavar="FILE", help="Continue the sequence in this file, which --save-context wrote."
        ),
    ] = None
    save_context: Annotated[
        Path | None,
        typer.Option(
            "--save-context", metavar="FILE", help="Write the whole sequence to this file, to continue it later."
        ),
    ] = None
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    form: FormOptions = field(default_factory=FormOptions)
    engines: EngineOptions = field(default_factory=EngineOptions)
    as_json: options.Json = False

    def settings(self) -> dict[str, Any]:
        """The fields of generation settings that are given.

        Raises:
            InputError: As :meth:`ChoiceOptions.settings`.
        """
        return self.choice.settings(
            self.fields, max_new_tokens=self.max_new_tokens, no_repeat_ngram_size=self.no_repeat_ngram_size
        )


@takes_options
def command(bundle: options.Bundle, asked: GenerateOptions) -> None:
    """Continue a prompt, or answer what a model's encoder reads, and print the text as it comes.

    Tokens are chosen as the model's generation_config.json says, unless an option says otherwise; fields mean what they
    mean in transformers.

    With --prompts, every line of the file is a text in JSON, or an object with "prompt", "messages" or "tokens" and
    options of its own. A line of JSON is printed for each as soon as it is done, with its "index". A prompt gets the
    tokens that it would get alone.

    Example: twoheads generate smollm2.bundle --prompt "Once upon a time" --max-new-tokens 100 --do-sample --seed 1
    """
    require_bundle(bundle)  # a wrong path is told before anything else
    settings, prompt = asked.settings(), asked.given.read()
    loaded = asked.engines.load(bundle)
    keep_prefixes(loaded, asked.cache)
    _default_length(loaded, settings)
    settings |= {"stop": asked.stop, "seed": asked.seed, "ignore_eos": asked.ignore_eos, **asked.form.read()}
    settings |= asked.speech.read()
    if asked.pages is not None and (asked.given.prompts is not None or asked.load_context is not None):
        raise InputError("--pages", "is for one prompt that begins here", "leave out --prompts or --load-context")
    if asked.given.prompts is not None:
        continue_lines(loaded, prompt, asked.at_once, settings)
        return
    context = _context(loaded, asked)
    made = loaded.generate(
        prompt,
        context=context,
        speculate=asked.speculate if asked.draft is None else asked.engines.load(asked.draft),
        steady=asked.steady,
        pages=asked.pages if context is None else None,
        streamer=None if asked.as_json else _print,
        **settings,
    )
    if context is not None and asked.save_context is not None:
        loaded.save_context(context, asked.save_context)
    results = made if isinstance(made, list) else [made]
    for warning in results[0].warnings:
        print_warning(warning)
    if asked.as_json:
        print_json(results[0].as_json() if len(results) == 1 else [result.as_json() for result in results])
        return
    sys.stdout.write("\n")
    for result in results:
        print_note(summary(result))


def _context(loaded: LoadedBundle, asked: GenerateOptions) -> Context | None:
    """What is continued, where it comes from a file or goes to one."""
    if asked.save_context is not None:
        arguments.check_output_path(asked.save_context)
    if asked.load_context is not None:
        return loaded.load_context(asked.load_context)
    return None if asked.save_context is None else loaded.open_context(pages=asked.pages)


def _messages(file: Path, text: str) -> list[dict[str, Any]]:
    """The conversation that ``file`` holds."""
    messages = parse_json(text.encode(), str(file), fix="give a list of messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise InputError(str(file), "is no conversation", 'give a list of {"role": ..., "content": ...}')
    return messages


def _default_length(loaded: LoadedBundle, given: dict[str, Any]) -> None:
    own = loaded.generation.model.settings
    if not {"max_new_tokens", "max_length"} & given.keys() and own.max_new_tokens is None and own.max_length is None:
        given["max_new_tokens"] = DEFAULT_TOKENS


def _print(piece: Piece) -> None:
    sys.stdout.write(piece.text)
    sys.stdout.flush()


def summary(made: Generated) -> str:
    """One line about a continuation."""
    count = len(made.tokens)
    guesses = f", {made.right_guesses} of {made.guessed_tokens} guesses right" if made.guessed_tokens else ""
    return (
        f"{made.prompt_tokens} + {count} tokens ({made.finish_reason}), the first after "
        f"{seconds_text(made.first_token_seconds)}, then {made.tokens_per_second:.1f} tokens/s, "
        f"{made.engine_calls} calls, peak {size_text(made.peak_bytes)}{guesses}"
    )
