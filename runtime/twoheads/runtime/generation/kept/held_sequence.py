"""A sequence as it is held: its tokens, the keys, values and states of them, and what its whole blocks are called."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.generation.kept.kept_source import KeptSource
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache, following
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.kept.states import KeptStates

__all__ = ["KeptSequence"]


class KeptSequence:
    """Tokens and all that is kept of them. Who computes them writes their rows, and counts them with :meth:`add`.

    Args:
        steps: What continues it.
        cache: Beginnings that were computed before, if any are kept.
        kept: Where keys and values go, if not into arrays of its own.
        source: What is read of an encoder, if there is one.

    Attributes:
        steps: What continues it.
        tokens: The sequence.
        states: The states of scans.
        source: What is read of an encoder; nothing without one.
        steady: Tokens from the start whose keys were computed as a prompt's are.
        bound: What is bound to the arrays of :attr:`kept`; emptied when these move.
    """

    def __init__(
        self,
        steps: Steps,
        cache: PrefixCache | None = None,
        kept: KeptBlocks | None = None,
        source: KeptSource | None = None,
    ) -> None:
        self.steps = steps
        self.tokens: list[int] = []
        self.states = KeptStates(steps)
        self.source = KeptSource(steps, {}) if source is None else source
        self.steady = 0
        self.bound: dict[Hashable, Any] = {}
        self._kept: KeptBlocks | None = KeptBlocks(steps) if kept is None else kept
        self._cache = cache
        self._names: list[bytes] = []
        """Of the whole blocks that were computed as a prompt's are, as the cache calls them."""
        self._reached = 0
        """The most whole blocks that it has had: rings have forgotten what these replaced."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.steps.program.block_size

    @property
    def kept(self) -> KeptBlocks:
        """Its keys and values.

        Raises:
            InputError: It is closed.
        """
        if self._kept is None:
            raise InputError("context", "is closed", "open another one")
        return self._kept

    @property
    def nbytes(self) -> int:
        """Bytes of its keys, values and states; copies share those of an encoder."""
        return self.kept.nbytes + self.states.nbytes + self.source.nbytes

    def reserve(self, blocks: int) -> None:
        """Makes room for as many whole blocks."""
        if self.kept.reserve(blocks):
            self.bound.clear()

    def add(self, tokens: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Counts tokens of the open block, whose rows are written and behind whose last one the states are."""
        self.tokens.extend(int(token) for token in tokens)
        if len(self.tokens) % self.block == 0:
            self._complete()

    def _complete(self) -> None:
        """The open block is full."""
        self.states.complete()
        kept, blocks = self.kept, len(self.tokens) // self.block
        self._reached = max(self._reached, blocks)
        grown = kept.reserve(blocks)
        if kept.complete(blocks - 1) or grown:
            self.bound.clear()

    def cut(self, length: int) -> None:
        """Forgets all tokens but the first ``length``: with states, up to the beginning of the last block or two."""
        kept, block = self.kept, self.block
        if length == len(self.tokens):
            return
        if length // block < len(self.tokens) // block and kept.reopen(length // block):
            self.bound.clear()
        kept.clear(length % block)
        self.states.cut(length)
        del self.tokens[length:]
        self.steady = min(self.steady, length)
        del self._names[length // block :]

    def can_cut(self, length: int) -> bool:
        """Whether rings and states still have what is needed behind ``length`` tokens, or at its block's beginning."""
        block = self.block
        if self.steps.has_rings and self._reached - length // block > 1:
            return False
        return not self.steps.states or len(self.tokens) // block == length // block

    def clear(self) -> None:
        """Forgets all tokens."""
        self.tokens, self.steady, self._reached = [], 0, 0
        self._kept, self.states = self.kept.fresh(), KeptStates(self.steps)
        self.bound.clear()
        self._names.clear()

    def copy(self) -> KeptSequence:
        """The same, in arrays of its own."""
        made = KeptSequence(self.steps, self._cache, self.kept.copy(), self.source)
        made.tokens, made.states, made.steady = list(self.tokens), self.states.copy(), self.steady
        made._names, made._reached = list(self._names), self._reached
        return made

    def close(self) -> None:
        """Lets the memory go; it can't be used any more."""
        if self._kept is not None:
            self._kept.release()
        self._kept = None
        self.bound.clear()

    def facts(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the contents of the arrays, which :meth:`written` gives."""
        kept = {"tokens": list(self.tokens), "steady": self.steady, "reached": self._reached}
        return kept | ({"earlier": self.states.earlier} if self.steps.states else {})

    def written(self, blocks: int) -> Iterator[npt.NDArray[Any]]:
        """Every part of its keys, values and states that holds something of so many whole blocks and the open one.

        Raises:
            InputError: It is closed.
        """
        yield from self.kept.written(blocks)
        yield from self.states.written()

    def restore(self, tokens: list[int], steady: int, reached: int, earlier: int) -> bool:
        """Makes an empty sequence one of these tokens, whose arrays hold what :meth:`written` gave already.

        Returns:
            ``False`` where there is no state before token ``earlier``.
        """
        block = self.block
        if not self.states.restore(earlier, len(tokens) - len(tokens) % block, len(tokens)):
            return False
        self.tokens, self.steady, self._reached = tokens, steady, reached
        for start in range(0, steady - steady % block if self._cache is not None else 0, block):
            if self._cache is not None:
                self._names.append(self._name(self._cache, tokens[start : start + block]))
        return True

    def take_from_cache(self, tokens: npt.NDArray[np.int64]) -> int:
        """Takes whole blocks of ``tokens`` over, all but the last token; returns how many tokens there are then."""
        cache, kept, block = self._cache, self.kept, self.block
        while cache is not None and len(self.tokens) + block < len(tokens):
            start = len(self.tokens)
            if start != len(self._names) * block:
                break  # in a block, or behind one that the cache was not given
            new = [int(token) for token in tokens[start : start + block]]
            page = cache.find(self._name(cache, new))
            if page is None:
                break
            kept.open_page(page[: len(kept.opened)])
            self.states.open_page(page[len(kept.opened) :], start + block)
            self.add(new)
            self._names.append(self._name(cache, new))
        return len(self.tokens)

    def give_to_cache(self) -> None:
        """Gives the cache the block that was just filled."""
        number, rest = divmod(len(self.tokens), self.block)
        if self._cache is not None and not rest and number == len(self._names) + 1:
            self._names.append(self._name(self._cache, self.tokens[-self.block :]))
            self._cache.put(self._names[-1], [*self.kept.page(number - 1), *self.states.page()])

    def take_parts(self, tokens: npt.NDArray[np.int64]) -> int:
        """Takes parts of the open block over, unless ``tokens`` fill it: then it is computed as a whole.

        Behind :meth:`take_from_cache`; returns as that. Rows of parts have the bits of steps of several rows, and those
        of whole blocks the bits of runs.
        """
        first = len(self.tokens)
        if first % self.block == 0 and len(tokens) < first + self.block:
            for start, name in self._parts([int(token) for token in tokens[first:-1]]):
                cache = self._cache
                page = None if cache is None else cache.find_part(name)
                if cache is None or page is None:
                    break
                self.kept.write(start, dict(enumerate(page)), cache.part)
                self.add(tokens[first + start : first + start + cache.part])
        return len(self.tokens)

    def give_parts(self) -> None:
        """Gives the cache the parts of the open block that it lacks: all rows are as :meth:`take_parts` needs them."""
        cache = self._cache
        for start, name in self._parts(self.tokens[len(self.tokens) // self.block * self.block :]):
            if cache is not None and name not in cache:
                cache.put(name, self.kept.rows(start, cache.part))

    def _parts(self, tokens: list[int]) -> Iterator[tuple[int, bytes]]:
        """The parts that these first tokens of the open block fill: where each begins in it, and its name."""
        cache = self._cache
        if cache is None or not cache.part or len(self._names) != len(self.tokens) // self.block:
            return
        name = self._names[-1] if self._names else cache.first
        for start in range(0, len(tokens) - cache.part + 1, cache.part):
            name = following(name, tokens[start : start + cache.part])
            yield start, name

    def _name(self, cache: PrefixCache, tokens: list[int]) -> bytes:
        return following(self._names[-1] if self._names else cache.first, tokens)
