"""Text from a bundle: prompts and conversations are continued token by token."""

from __future__ import annotations

import collections.abc
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.generation.call_reader import CallReader, Prompt
from twoheads.runtime.generation.contexts import Contexts
from twoheads.runtime.generation.generated import Generated, Piece
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache
from twoheads.runtime.generation.model import GenerationModel
from twoheads.runtime.generation.sequence_run import Call, SequenceRun
from twoheads.runtime.reports.notices import give_notices

__all__ = ["Generator", "Pieces"]

Pieces: TypeAlias = "collections.abc.Generator[Piece, None, None]"
"""New tokens, one by one; to be closed by whoever leaves early."""


class Generator:
    """Generates with one bundle. One call at a time.

    Args:
        model: Of the bundle.

    Attributes:
        model: Of the bundle.
        contexts: Opens its sequences.
        reader: Reads calls on it.
    """

    def __init__(self, model: GenerationModel) -> None:
        self.model = model
        self.contexts = Contexts(model)
        self.reader = CallReader(self.contexts)

    @property
    def calls(self) -> int:
        """Engine calls so far."""
        return self.model.engines.calls

    @property
    def steps(self) -> Steps:
        """What a step computes."""
        return self.model.steps

    def open_engines(self, tokens: int, pages: str | None = None) -> None:
        """Opens what a sequence of ``tokens`` tokens needs; see :meth:`Contexts.open_engines`.

        Raises:
            BundleError: An engine is missing, or can't be opened.
        """
        self.contexts.open_engines(tokens, pages)

    def keep_prefixes(self, memory: int, folder: str | os.PathLike[str] | None = None) -> PrefixCache:
        """From now on contexts take over beginnings that were computed before; see :meth:`Contexts.keep_prefixes`.

        Raises:
            InputError: ``memory`` is negative, or ``folder`` can't be made.
        """
        return self.contexts.keep_prefixes(memory, folder)

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
        return self._continue(self.reader.open(prompt, **options), streamer)

    def stream(self, prompt: Prompt, **options: Any) -> Pieces:
        """As :meth:`generate` for one sequence, token by token; closing the iterator ends it.

        Raises:
            InputError: As there; or several sequences are asked for.
        """
        call = self.reader.open(prompt, **options)
        if len(call.seeds) != 1:
            raise InputError("stream", "gives the tokens of one sequence, one by one", "call generate for several")
        run = SequenceRun(call, call.context, call.seeds[0], self.reader.text_stream)
        try:
            yield from run.pieces(call.context.append(call.prompt))
        finally:
            run.close(kept=call.kept)

    def _continue(self, call: Call, streamer: Callable[[Piece], None] | None) -> Generated | list[Generated]:
        """Computes the prompt, and every continuation of it: the last with the context itself."""
        notes = self.reader.notes(call)
        give_notices(notes)
        logits = call.context.append(call.prompt)
        made: list[Generated] = []
        for at, sequence_seed in enumerate(call.seeds):
            last = at == len(call.seeds) - 1
            context = call.context if last else call.context.fork()
            run = SequenceRun(call, context, sequence_seed, self.reader.text_stream)
            try:
                for piece in run.pieces(logits):
                    if streamer is not None:
                        streamer(piece)
            finally:
                run.close(kept=call.kept and last)
            made.append(replace(run.result(), engine_calls=self.calls - call.calls, warnings=notes))
        return made if len(made) > 1 else made[0]
