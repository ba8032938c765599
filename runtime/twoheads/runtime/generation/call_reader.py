"""What a caller asks for, read and checked: what is continued, and how its tokens are chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.bundle_format import Manifest
from twoheads.runtime.generation.asked import check_asked, check_prompt
from twoheads.runtime.generation.choosing.constraint import read_constraint
from twoheads.runtime.generation.choosing.draft import DraftGuesses, Guesser
from twoheads.runtime.generation.choosing.lookup import PromptLookup, needed_guesses
from twoheads.runtime.generation.choosing.processors import LogitsProcessor
from twoheads.runtime.generation.choosing.settings import Settings
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.contexts import Contexts
from twoheads.runtime.generation.encoder import OPTIONS, Beginning, Unread
from twoheads.runtime.generation.kept.kept_source import KeptSource
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.sequence_run import Call
from twoheads.runtime.generation.text.chat import Message, render_chat
from twoheads.runtime.generation.text.text_stream import TextStream
from twoheads.runtime.generation.text.vocabulary import vocabulary
from twoheads.runtime.reports.notices import notices

__all__ = ["CallReader", "Prompt"]

Prompt: TypeAlias = "str | Sequence[int] | npt.NDArray[Any] | Sequence[Message] | Mapping[str, Any]"
"""A text, tokens, a conversation, or the arrays that an encoder reads."""


class CallReader:
    """Reads calls on one bundle.

    Args:
        contexts: Opens its sequences.
    """

    def __init__(self, contexts: Contexts) -> None:
        self._contexts, self._model = contexts, contexts.model

    def open(
        self,
        prompt: Prompt,
        later: bool = False,
        /,
        *,
        context: Context | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        ignore_eos: bool = False,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] = (),
        return_logits: bool = False,
        speculate: bool | Contexts = False,
        steady: bool = False,
        json_schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        pages: str | None = None,
        chat: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Call:
        """What a call continues and how, after all checks; see :meth:`Generator.generate` for the options.

        With ``later`` an encoder does not run yet: see :meth:`begin`.

        Raises:
            InputError: As there.
        """
        model, began, calls = self._model, time.perf_counter(), self._model.engines.calls
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
        beginning.check(encoder=bool(model.steps.source), continued=context is not None, speech=model.speech)
        wanted = self._settings(settings, stop, ignore_eos=ignore_eos)
        self.text_stream(wanted.stop_strings)
        constraint = read_constraint(
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
            tokenizer=model.bundle.tokenizer_file,
            ends=wanted.eos_token_id,
        )
        if not model.steps.source or context is not None:
            used, tokens = self._continued(prompt, context, chat or {}, pages)
            unread = None
        else:
            used, tokens, unread = self._behind_encoder(prompt, pages, beginning, wanted, later=later)
        own = (logits_processor,) if callable(logits_processor) else tuple(logits_processor)
        seeds, kept, guesser = _seeds(wanted, seed), context is not None, self._guesser(speculate)
        return Call(
            used, kept, tokens, wanted, own, seeds, return_logits, guesser, steady, constraint, began, calls, unread
        )

    def _behind_encoder(
        self, prompt: Prompt, pages: str | None, beginning: Beginning, wanted: Settings, *, later: bool
    ) -> tuple[Context, list[int], Unread | None]:
        """An empty context, the decoder's first tokens, and what the encoder is to read ``later``, if so."""
        contexts, speech = self._contexts, self._model.speech
        if later:
            unread = Unread(contexts.read_source(prompt), beginning)
            return contexts.new(), beginning.tokens(wanted, speech, None), unread
        used = contexts.open(source=prompt, pages=pages)
        return used, beginning.tokens(wanted, speech, used), None

    def begin(self, call: Call, kept: KeptBlocks, source: KeptSource) -> tuple[Context, list[int]]:
        """Another context for a call, with its keys and values in ``kept``, and the tokens to append."""
        context = self._contexts.new(kept, source)
        if call.unread is None:
            return context, call.prompt
        return context, call.unread.beginning.tokens(call.settings, self._model.speech, context)

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
            return self._model.encode(prompt, special=first), False
        if isinstance(prompt, Mapping):
            raise InputError("prompt", "is a mapping, as an encoder reads it", "give a text, tokens [N] or messages")
        if len(prompt) and isinstance(prompt[0], Mapping):
            messages = [message for message in prompt if isinstance(message, Mapping)]
            if len(messages) < len(prompt):
                raise InputError("messages", "hold what is no message", 'give {"role": ..., "content": ...} only')
            text = render_chat(self._model.facts.chat_templates, self._model.facts.special_tokens, messages, **chat)
            return self._model.encode(text, special=False), True
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
        if stops and self._model.tokenizer is None:
            raise InputError("stop", "is a text, and the bundle has no tokenizer", "give eos_token_id")
        return TextStream(self._model.tokenizer, stops)

    def notes(self, call: Call) -> tuple[str, ...]:
        """What the caller should know about what comes out: of a context without the call's prompt yet."""
        total = len(call.context) + len(call.prompt)
        return notices(self._model.bundle.manifest, self._model.bundle.program, total + call.settings.new_tokens(total))

    def _continued(
        self, prompt: Prompt, context: Context | None, chat: Mapping[str, Any], pages: str | None
    ) -> tuple[Context, list[int]]:
        """The context, cut back to what the prompt continues, and the tokens to append."""
        if context is not None:
            self._contexts.check_owner(context)
            if pages is not None:
                raise InputError("pages", "are named beside a context, which has its own", "name them when opening it")
        used = self._contexts.open(pages=pages) if context is None else context
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

    def _guesser(self, speculate: object) -> Callable[[Sequence[int]], Guesser] | None:
        """What guesses the tokens of a sequence, by ``speculate`` of a call.

        Raises:
            InputError: It is neither true nor false nor a draft; or the draft has other tokens.
        """
        most = self._model.engines.steps.rows[1] - 1
        if isinstance(speculate, Contexts):
            draft = speculate
            self._check_draft(draft)
            share, limit = self._share(draft), draft.model.steps.program.max_length
            longest = None if limit is None else limit.length
            return lambda tokens: DraftGuesses(
                draft.open(), tokens, most, needed=self._needed_guesses(), share=share, longest=longest
            )
        if not isinstance(speculate, bool):
            raise InputError("speculate", f"is {speculate!r:.60}", "give true, false, or the bundle of a draft")
        needed = self._needed_guesses()
        return (lambda tokens: PromptLookup(tokens, most, needed=needed)) if speculate else None

    def _needed_guesses(self) -> float:
        """How many guesses must come true in a call, by the form of this bundle's steps."""
        manifest = self._model.bundle.manifest
        return needed_guesses(
            in_place=self._model.engines.rows_in_place is not None,
            whole_numbers=manifest.weight_dtype == "int8" and manifest.products == "int8",
            quantised=bool(manifest.quantised),
        )

    def _share(self, draft: Contexts) -> float:
        """What a step of a draft takes, in steps of this model: steps read weights, so about as the bytes of these."""
        return _weight_bytes(draft.model.bundle.manifest) / max(1, _weight_bytes(self._model.bundle.manifest))

    def _check_draft(self, draft: Contexts) -> None:
        """A draft's tokens are this model's."""
        own, other = self._model.steps.tokens.limit, draft.model.steps.tokens.limit
        if own != other:
            problem = f"has a vocabulary of {other} tokens, and the model one of {own}"
            raise InputError("draft", problem, "draft with a model of the same vocabulary")
        files = self._model.bundle.tokenizer_file, draft.model.bundle.tokenizer_file
        if vocabulary(files[0]) != vocabulary(files[1]):
            raise InputError("draft", "has other tokens than the model", "draft with a model of the same tokenizer")

    def _settings(self, given: Mapping[str, Any], stop: Any, *, ignore_eos: bool) -> Settings:
        if stop is not None and given.get("stop_strings") is not None:
            raise InputError("stop", "is given beside stop_strings, which means the same", "give one of them")
        named = {**given, "stop_strings": stop} if stop is not None else dict(given)
        own = {name: value for name, value in self._model.refused.items() if named.get(name) is None}
        made = self._model.settings.changed(own, self._model.facts.where).changed(named, "generate")
        return replace(made, eos_token_id=()) if ignore_eos else made


def _seeds(settings: Settings, seed: int | None) -> tuple[np.random.SeedSequence | None, ...]:
    """Of every sequence; ``None`` for the most likely tokens."""
    if not settings.do_sample:
        return (None,)
    return tuple(np.random.SeedSequence(seed).spawn(settings.num_return_sequences))


def _weight_bytes(manifest: Manifest) -> int:
    entries = (*manifest.weights.values(), *manifest.built_in.values())
    return sum(prod(entry.shape) * np.dtype(entry.dtype).itemsize for entry in entries)
