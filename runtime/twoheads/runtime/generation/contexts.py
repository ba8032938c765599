"""Sequences of one bundle: they are opened, saved and read again, and begin with what was computed before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.encoder import as_source
from twoheads.runtime.generation.kept.held_sequence import KeptSequence
from twoheads.runtime.generation.kept.kept_source import KeptSource, refuse_source
from twoheads.runtime.generation.kept.pages import named_pages
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.model import GenerationModel
from twoheads.runtime.generation.saved import read_context, write_context

__all__ = ["Contexts"]


class Contexts:
    """Opens sequences of one bundle.

    Args:
        model: Of the bundle.

    Attributes:
        model: Of the bundle.
        cache: Beginnings that were computed before; see :meth:`keep_prefixes`.
    """

    def __init__(self, model: GenerationModel) -> None:
        self.model = model
        self.cache: PrefixCache | None = None

    def open(self, kept: KeptBlocks | None = None, source: Any = None, pages: str | None = None) -> Context:
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
        if pages is not None and self.model.engines.built is not None:
            problem = f"are {pages!r:.40}, and backend {self.model.engines.backend.name} keeps those of the model"
            raise InputError("pages", problem, "leave it out")
        if pages is not None:
            kept = self._pages(pages)
        if self.model.steps.source:
            if source is None:
                raise InputError("context", "has no input for the model's encoder", "give a source")
            found = KeptSource(self.model.steps, self.run_encoder(self.read_source(source)))
        elif source is not None:
            raise InputError("source", "is given, and the model has no encoder", "leave it out")
        return self.new(kept, found)

    def _pages(self, name: str) -> KeptBlocks:
        """Empty pages of a kind other than the model's own.

        Raises:
            InputError: See :func:`named_pages`.
        """
        return named_pages(name, self.model.steps, self.model.engines.rounded, cached=self.cache is not None)

    def new(self, kept: KeptBlocks | None = None, source: KeptSource | None = None) -> Context:
        """An empty sequence behind what was read of an encoder, if there is one."""
        model = self.model
        sequence = KeptSequence(model.steps, self.cache, kept, source)
        return Context(model.engines, model.weights, model.bundle, sequence, model.prompts)

    def read_source(self, prompt: Any) -> Any:
        """What the encoder reads of a prompt, checked.

        Raises:
            InputError: It is none of what the encoder reads.
        """
        return self.model.encoder.check(as_source(prompt, partial(self.model.encode, special=True)))

    def run_encoder(self, checked: Any) -> Mapping[str, npt.NDArray[Any]]:
        """What the decoder reads of its encoder, by name; ``checked`` is what the encoder reads."""
        values, calls = self.model.encoder.run(checked)
        self.model.engines.calls += calls
        return values

    def open_engines(self, tokens: int, pages: str | None = None) -> None:
        """Opens what a sequence of ``tokens`` tokens needs, so that the first token does not wait for it.

        Args:
            tokens: How many.
            pages: As of :meth:`open`.

        Raises:
            BundleError: An engine is missing, or can't be opened.
        """
        model = self.model
        if model.prompts is not None:
            model.prompts.prepare(tokens // model.steps.program.block_size)
        model.engines.open_for(tokens, runs=model.prompts is not None, rounded=pages == RoundedReads.pages)

    def save(self, context: Context, path: str | os.PathLike[str]) -> None:
        """Writes a context to a file, which :meth:`load` reads.

        Raises:
            InputError: It is closed or another bundle's, or the file can't be written.
        """
        if context.kept.rounds:
            raise InputError("context", "has rounded pages, which no file keeps", "keep the context open")
        self.check_owner(context)
        write_context(context, Path(path), self.model.identity)

    def load(self, path: str | os.PathLike[str]) -> Context:
        """The context that was saved to ``path``: it goes on, is cut back and forked as if it had stayed open.

        Raises:
            InputError: The file is none, is damaged, or was saved with another bundle, backend or processor.
        """

        def begin(source: KeptSource, pages: str | None) -> Context:
            return self.new(None if pages is None else self._pages(pages), source)

        return read_context(self.model.steps, begin, Path(path), self.model.identity)

    def keep_prefixes(self, memory: int, folder: str | os.PathLike[str] | None = None) -> PrefixCache:
        """From now on contexts take over whole blocks of beginnings that were computed before, to the bit.

        Args:
            memory: Bytes of keys, values and states that are kept in memory.
            folder: Where they are kept for other processes as well.

        Raises:
            InputError: ``memory`` is negative, or ``folder`` can't be made.
        """
        steps = self.model.steps
        refuse_source(steps, "no cache of beginnings keeps", "generate without a cache")
        path = None if folder is None else Path(folder)
        self.cache = PrefixCache(steps, "\n".join(self.model.identity), memory=memory, folder=path)
        return self.cache

    def check_owner(self, context: Context) -> None:
        """Refuses what another bundle opened.

        Raises:
            InputError: It did.
        """
        if context.owner is not self.model.bundle:
            raise InputError("context", "is of another bundle", "open one of this bundle")
