"""Text from a bundle: prompts and conversations are continued token by token."""

from __future__ import annotations

import collections.abc
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.tokenizer import Tokenizer
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.generation.asked import check_asked, check_prompt
from twoheads.runtime.generation.choosing.constraint import read_constraint
from twoheads.runtime.generation.choosing.draft import DraftGuesses, Guesser
from twoheads.runtime.generation.choosing.lookup import PromptLookup, needed_guesses
from twoheads.runtime.generation.choosing.processors import LogitsProcessor
from twoheads.runtime.generation.choosing.settings import Settings, split_unsupported
from twoheads.runtime.generation.choosing.speech import split_speech
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.encoder import OPTIONS, Beginning, RunsEncoder, Unread, as_source
from twoheads.runtime.generation.kept.pages import named_pages
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache
from twoheads.runtime.generation.kept.prompts import RunsPrompts
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.kept.source import KeptSource, refuse_source
from twoheads.runtime.generation.results import Generated, Piece
from twoheads.runtime.generation.saved import read_context, write_context
from twoheads.runtime.generation.sequence_run import Call, SequenceRun
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.text.chat import Message, render_chat
from twoheads.runtime.generation.text.model_facts import ModelFacts, read_facts
from twoheads.runtime.generation.text.text_stream import TextStream
from twoheads.runtime.generation.text.vocabulary import vocabulary
from twoheads.runtime.reports.notices import notices

__all__ = ["Generator", "Pieces", "Prompt"]

Prompt: TypeAlias = "str | Sequence[int] | npt.NDArray[Any] | Sequence[Message] | Mapping[str, Any]"
"""A text, tokens, a conversation, or the arrays that an encoder reads."""

Pieces: TypeAlias = "collections.abc.Generator[Piece, None, None]"
"""New tokens, one by one; to be closed by whoever leaves early."""


class Generator:
    """Generates with one bundle. One call at a time.

    Args:
        bundle: Which.
        weights: Its weights.
        engines: Its step engines.
        tokenizer: Its tokenizer, if it has one.
        encoder: Runs its encoder, if it has one.
        prompts: Computes whole blocks of prompts; ``None`` where steps do.

    Attributes:
        facts: What the model says about generating.
        settings: The model's own, which every call begins with.
        cache: Beginnings that were computed before; see :meth:`keep_prefixes`.

    Raises:
        InputError: The model's settings are no such; the field is named. (What of them is not supported is an error of
            every call that does not replace it.)
    """

    def __init__(
        self,
        bundle: Bundle,
        weights: Weights,
        engines: StepEngines,
        tokenizer: Tokenizer | None,
        encoder: RunsEncoder,
        prompts: RunsPrompts | None = None,
    ) -> None:
        self.facts: ModelFacts = read_facts(bundle.generation_file)
        supported, self._refused = split_unsupported(self.facts.settings)
        settings, self._speech = split_speech(supported, self.facts.where)
        self.settings = Settings().changed(settings, self.facts.where)
        self._encoder = encoder
        self._prompts = prompts
        if prompts is None:
            engines.compute_blocks()
        self._bundle = bundle
        self._weights = weights
        self._engines = engines
        self._tokenizer = tokenizer
        self.cache: PrefixCache | None = None

    @property
    def calls(self) -> int:
        """Engine calls so far."""
        return self._engines.calls

    @property
    def steps(self) -> Steps:
        """What a step computes."""
        return self._engines.steps

    @property
    def engines(self) -> StepEngines:
        """What computes."""
        return self._engines

    def open_engines(self, tokens: int, pages: str | None = None) -> None:
        """Opens what a sequence of ``tokens`` tokens needs, so that the first token does not wait for it.

        Args:
            tokens: How many.
            pages: As of :meth:`open_context`.

        Raises:
            BundleError: An engine is missing, or can't be opened.
        """
        blocks = tokens // self.steps.program.block_size
        if self._prompts is not None:
            self._prompts.prepare(blocks)
        self._engines.open_for(tokens, runs=self._prompts is not None, rounded=pages == RoundedReads.pages)

    def open_context(self, kept: KeptBlocks | None = None, source: Any = None, pages: str | None = None) -> Context:
        """An empty sequence, to be continued, cut back and forked; see :class:`Context`.

        Args:
            kept: Where its keys and values go, if not into arrays of its own.
            source: What the encoder reads, if the model has one: a text, tokens, or arrays by name.
            pages: ``int8`` to keep whole blocks of keys and values rounded to 8 bits; ``int8-steps`` to keep them as
                they are, and let steps of one token read a copy in 8 bits. Both are approximations.

        Raises:
            InputError: There is no source for an encoder, or one for none, or it is not what the encoder reads.
        """
        found: KeptSource | None = None
        if pages is not None:
            kept = named_pages(pages, self.steps, self._engines.rounded, cached=self.cache is not None)
        if self.steps.source:
            if source is None:
                raise InputError("context", "has no input for the model's encoder", "give a source")
            found = KeptSource(self.steps, self.run_encoder(self._read_by_encoder(source)))
        elif source is not None:
            raise InputError("source", "is given, and the model has no encoder", "leave it out")
        return self._new_context(kept, found)

    def run_encoder(self, checked: Any) -> Mapping[str, npt.NDArray[Any]]:
        """What the decoder reads of its encoder, by name; ``checked`` is what the encoder reads."""
        values, calls = self._encoder.run(checked)
        self._engines.calls += calls
        return values

    def begin(self, call: Call, kept: KeptBlocks, source: KeptSource) -> tuple[Context, list[int]]:
        """Another context for a call, with its keys and values in ``kept``, and the tokens to append."""
        context = self._new_context(kept, source)
        if call.unread is None:
            return context, call.prompt
        return context, call.unread.beginning.tokens(call.settings, self._speech, context)

    def _new_context(self, kept: KeptBlocks | None, source: KeptSource | None) -> Context:
        return Context(self._engines, self._weights, self._bundle, self.cache, kept, source, self._prompts)

    def _read_by_encoder(self, prompt: Any) -> Any:
        return self._encoder.check(as_source(prompt, partial(self._text_tokens, special=True)))

    def save_context(self, context: Context, path: str | os.PathLike[str]) -> None:
        """Writes a context to a file, which :meth:`load_context` reads.

        Raises:
            InputError: It is closed or another bundle's, or the file can't be written.
        """
        if context.kept.rounds:
            raise InputError("context", "has rounded pages, which no file keeps", "keep the context open")
        self._check_owner(context)
        write_context(context, Path(path), self._identity)

    def load_context(self, path: str | os.PathLike[str]) -> Context:
        """The context that was saved to ``path``: it goes on, is cut back and forked as if it had stayed open.

        Raises:
            InputError: The file is none, is damaged, or was saved with another bundle, backend or processor.
        """
        return read_context(self.steps, partial(self._new_context, None), Path(path), self._identity)

    def keep_prefixes(self, memory: int, folder: str | os.PathLike[str] | None = None) -> PrefixCache:
        """From now on contexts take over whole blocks of beginnings that were computed before, to the bit.

        Args:
            memory: Bytes of keys, values and states that are kept in memory.
            folder: Where they are kept for other processes as well.

        Raises:
            InputError: ``memory`` is negative, or ``folder`` can't be made.
        """
        refuse_source(self.steps, "no cache of beginnings keeps", "generate without a cache")
        identity = "\n".join(self._identity)
        path = None if folder is None else Path(folder)
        self.cache = PrefixCache(self._engines.steps, identity, memory=memory, folder=path)
        return self.cache

    def generate(
        self, prompt: Prompt, *, streamer: Callable[[Piece], None] | None = None, **options: Any
    ) -> Generated | list[Generated]:
        """Continues ``prompt``.

        Args:
            prompt: A text, tokens ``[N]``, or messages, which the model's chat template turns into text. Where the
                model has an encoder, what that reads: a text, tokens, features, or arrays by name.
            streamer: Called with every token.
            **options: Those below, and fields of :class:`Settings`, which replace the model's own.

        Options:
            context: What it continues, and is continued with it; by default nothing. Of messages, which hold the whole
                conversation, only what differs from the context is computed.
            stop: Texts that end it (the field ``stop_strings``).
            seed: Of samples; without one they differ from call to call.
            ignore_eos: Go on behind tokens that end it.
            logits_processor: Called with the tokens and the logits ``[classes]``; returns others.
            return_logits: Keep the model's logits.
            speculate: Guess tokens from what stood behind the same ones before, or by a smaller bundle of the same
                vocabulary, the draft, and compute several in one call. What is chosen is what would be chosen without.
            steady: Compute every token by the engine of 8 rows, which is slower: logits then have the bits of a batch
                (:meth:`twoheads.runtime.LoadedBundle.open_batch`).
            json_schema: Let the text be JSON of this schema (needs the package llguidance).
            regex: Let the whole text match this regular expression (likewise).
            grammar: Let it follow this grammar, in the form of Lark (likewise).
            pages: ``int8`` to keep whole blocks of keys and values rounded to 8 bits: a fourth of the memory, slower
                steps. ``int8-steps`` to keep them as they are, and let steps of one token read a copy in 8 bits: faster
                steps in long contexts, for a fourth more memory. Results are not the model's own any more.
            chat: What else the chat template reads: see :func:`~twoheads.runtime.generation.text.chat.render_chat`.
            decoder_input_ids: Of an encoder-decoder the first tokens; by default the model's start token.
            language, task: Of a model of speech, e.g. ``en`` and ``transcribe``; by default it finds the language.

        Returns:
            The continuation; a list of them where ``num_return_sequences`` is given and more than one.

        Raises:
            InputError: The prompt or a setting is not one that the model has; a context is another bundle's.
        """
        return self._continue(self.open_call(prompt, **options), streamer)

    def stream(self, prompt: Prompt, **options: Any) -> Pieces:
        """As :meth:`generate` for one sequence, token by token; closing the iterator ends it.

        Raises:
            InputError: As there; or several sequences are asked for.
        """
        call = self.open_call(prompt, **options)
        if len(call.seeds) != 1:
            raise InputError("stream", "gives the tokens of one sequence, one by one", "call generate for several")
        run = SequenceRun(call, call.context, call.seeds[0], self.text_stream)
        try:
            yield from run.pieces(call.context.append(call.prompt))
        finally:
            run.close(kept=call.kept)

    def encode(self, prompt: Prompt, chat: Mapping[str, Any], *, first: bool) -> tuple[list[int], bool]:
        """The tokens of ``prompt``, and whether it is a whole conversation.

        Args:
            prompt: See :data:`Prompt`.
            chat: What else the chat template reads.
            first: Whether it begins a sequence, so that a text gets the special tokens that the model expects.

        Raises:
            InputError: It is nothing of these, or the bundle has no tokenizer.
        """
        check_prompt(prompt)
        if isinstance(prompt, str):
            return self._text_tokens(prompt, special=first), False
        if isinstance(prompt, Mapping):
            raise InputError("prompt", "is a mapping, as an encoder reads it", "give a text, tokens [N] or messages")
        if len(prompt) and isinstance(prompt[0], Mapping):
            messages = [message for message in prompt if isinstance(message, Mapping)]
            if len(messages) < len(prompt):
                raise InputError("messages", "hold what is no message", 'give {"role": ..., "content": ...} only')
            text = render_chat(self.facts.chat_templates, self.facts.special_tokens, messages, **chat)
            return self._text_tokens(text, special=False), True
        try:
            array = np.asarray(prompt)
        except (ValueError, OverflowError):  # rows of different lengths
            raise InputError("prompt", "is no sequence of tokens", "give a text, tokens [N] or messages") from None
        if array.ndim == 2 and len(array) == 1:
            array = array[0]
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError("prompt", f"is {array.dtype} {list(array.shape)}", "give a text, tokens [N] or messages")
        return [int(token) for token in array], False

    def text_stream(self, stops: Sequence[str]) -> TextStream:
        """What turns new tokens into text.

        Raises:
            InputError: There are texts to stop at, and the bundle has no tokenizer.
        """
        if stops and self._tokenizer is None:
            raise InputError("stop", "is a text, and the bundle has no tokenizer", "give eos_token_id")
        return TextStream(self._tokenizer, stops)

    def open_call(self, prompt: Prompt, **options: Any) -> Call:
        """What a call continues and how, after all checks; see :meth:`generate`."""
        return self._open(prompt, False, **options)

    def open_later(self, prompt: Prompt, **options: Any) -> Call:
        """Likewise, and an encoder does not run yet: see :meth:`begin`."""
        return self._open(prompt, True, **options)

    def _open(
        self,
        prompt: Prompt,
        later: bool,
        /,
        *,
        context: Context | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] = (),
        return_logits: bool = False,
        speculate: bool | Generator = False,
        steady: bool = False,
        json_schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        pages: str | None = None,
        chat: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Call:
        began, calls = time.perf_counter(), self._engines.calls
        check_asked(
            seed=seed,
            ignore_eos=ignore_eos,
            return_logits=return_logits,
            steady=steady,
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
            chat=chat,
        )
        beginning = Beginning(**{name: settings.pop(name) for name in OPTIONS if name in settings})
        beginning.check(encoder=bool(self.steps.source), continued=context is not None, speech=self._speech)
        wanted = self._settings(settings, stop, ignore_eos=ignore_eos)
        self.text_stream(wanted.stop_strings)
        constraint = read_constraint(
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
            tokenizer=self._bundle.tokenizer_file,
            ends=wanted.eos_token_id,
        )
        unread: Unread | None = None
        if not self.steps.source or context is not None:
            used, tokens = self._begin(prompt, context, chat or {}, pages)
        elif later:
            unread, used = Unread(self._read_by_encoder(prompt), beginning), self._new_context(None, None)
            tokens = beginning.tokens(wanted, self._speech, None)
        else:
            used = self.open_context(source=prompt, pages=pages)
            tokens = beginning.tokens(wanted, self._speech, used)
        own = (logits_processor,) if callable(logits_processor) else tuple(logits_processor)
        seeds: tuple[np.random.SeedSequence | None, ...] = (None,)
        if wanted.do_sample:
            seeds = tuple(np.random.SeedSequence(seed).spawn(wanted.num_return_sequences))
        kept, guesser = context is not None, self._guesser(speculate)
        return Call(
            used, kept, tokens, wanted, own, seeds, return_logits, guesser, steady, constraint, began, calls, unread
        )

    def _guesser(self, speculate: object) -> Callable[[Sequence[int]], Guesser] | None:
        """What guesses the tokens of a sequence, by ``speculate`` of a call.

        Raises:
            InputError: It is neither true nor false nor a draft; or the draft has other tokens.
        """
        most = self._engines.steps.rows[1] - 1
        if isinstance(speculate, Generator):
            draft = speculate
            self._check_draft(draft)
            return lambda tokens: DraftGuesses(draft.open_context(), tokens, most)
        if not isinstance(speculate, bool):
            raise InputError("speculate", f"is {speculate!r:.60}", "give true, false, or the bundle of a draft")
        in_place, quantised = self._engines.rows_in_place is not None, bool(self._bundle.manifest.quantised)
        needed = needed_guesses(in_place=in_place, quantised=quantised)
        return (lambda tokens: PromptLookup(tokens, most, needed=needed)) if speculate else None

    def _check_draft(self, draft: Generator) -> None:
        """A draft's tokens are this model's."""
        own, other = self._engines.steps.tokens.limit, draft.steps.tokens.limit
        if own != other:
            problem = f"has a vocabulary of {other} tokens, and the model one of {own}"
            raise InputError("draft", problem, "draft with a model of the same vocabulary")
        files = self._bundle.tokenizer_file, draft._bundle.tokenizer_file
        if vocabulary(files[0]) != vocabulary(files[1]):
            raise InputError("draft", "has other tokens than the model", "draft with a model of the same tokenizer")

    def notes(self, call: Call) -> tuple[str, ...]:
        """What the caller should know about what comes out: of a context without the call's prompt yet."""
        total = len(call.context) + len(call.prompt)
        return notices(self._bundle.manifest, self._bundle.program, total + call.settings.new_tokens(total))

    def _continue(self, call: Call, streamer: Callable[[Piece], None] | None) -> Generated | list[Generated]:
        """Computes the prompt, and every continuation of it: the last with the context itself."""
        notes = self.notes(call)
        for note in notes:
            warnings.warn(note, stacklevel=4)  # in the caller of LoadedBundle.generate
        logits = call.context.append(call.prompt)
        made: list[Generated] = []
        for at, sequence_seed in enumerate(call.seeds):
            last = at == len(call.seeds) - 1
            run = SequenceRun(call, call.context if last else call.context.fork(), sequence_seed, self.text_stream)
            for piece in run.pieces(logits):
                if streamer is not None:
                    streamer(piece)
            run.close(kept=call.kept and last)
            made.append(replace(run.result(), engine_calls=self._engines.calls - call.calls, warnings=notes))
        return made if len(made) > 1 else made[0]

    def _begin(
        self, prompt: Prompt, context: Context | None, chat: Mapping[str, Any], pages: str | None
    ) -> tuple[Context, list[int]]:
        """The context, cut back to what the prompt continues, and the tokens to append."""
        if context is not None:
            self._check_owner(context)
            if pages is not None:
                raise InputError("pages", "are named beside a context, which has its own", "name them when opening it")
        used = self.open_context(pages=pages) if context is None else context
        tokens, whole = self.encode(prompt, chat, first=not len(used))
        if not tokens:
            raise InputError("prompt", "has no tokens", "give at least one")
        if whole and len(used):
            same = 0
            while same < min(len(used), len(tokens) - 1) and used.tokens[same] == tokens[same]:
                same += 1
            used.rollback(same)
            tokens = tokens[same:]
        return used, tokens

    @property
    def _identity(self) -> tuple[str, str]:
        """Of the bundle, and of what computes."""
        whole = () if self._prompts is None else (f"whole blocks by runs, key tiles of {self.steps.program.key_tile}",)
        rows = () if self._engines.rows_in_place is None else ("rows of open blocks in place",)
        return self._bundle.identity, "\n".join((*self._engines.identity, *whole, *rows))

    def _check_owner(self, context: Context) -> None:
        if context.owner is not self._bundle:
            raise InputError("context", "is of another bundle", "open one of this bundle")

    def _settings(self, given: Mapping[str, Any], stop: Any, *, ignore_eos: bool) -> Settings:
        if stop is not None and given.get("stop_strings") is not None:
            raise InputError("stop", "is given beside stop_strings, which means the same", "give one of them")
        named = {**given, "stop_strings": stop} if stop is not None else dict(given)
        own = {name: value for name, value in self._refused.items() if named.get(name) is None}
        made = self.settings.changed(own, self.facts.where).changed(named, "generate")
        return replace(made, eos_token_id=()) if ignore_eos else made

    def _text_tokens(self, text: str, *, special: bool) -> list[int]:
        if self._tokenizer is None:
            raise InputError("prompt", "is a text, and the bundle has no tokenizer", "give tokens")
        return self._tokenizer.encode(text, special=special)
