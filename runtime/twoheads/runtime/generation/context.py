"""A sequence that grows: its tokens, and the keys and values that every layer keeps of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps
from twoheads.graphs.variants.step_calls import Pieces
from twoheads.graphs.variants.steps import CAPACITIES
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache, following
from twoheads.runtime.generation.kept.prompts import RunsPrompts
from twoheads.runtime.generation.kept.rounded_reads import RoundedReads
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.kept.source import KeptSource
from twoheads.runtime.generation.kept.states import KeptStates
from twoheads.runtime.generation.steps.added import AddedScores
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.steps.long_step import LongStep
from twoheads.runtime.generation.steps.step import BoundStep, Heads

__all__ = ["Context"]


class Context:
    """Tokens with their keys and values. Tokens are appended, and cut off again; other contexts branch off.

    With one or two threads what :meth:`append` computes depends, to the bit, on the tokens alone, not on how they were
    split (with more threads some kernels cut small products otherwise than large ones). Tokens that
    :meth:`step` adds one by one are computed by other kernels (the last bits may differ), so ``append`` computes them
    again first, with its own. Where layers have states, both begin with the open block: its first state is kept.
    Where ``prompts`` runs, a block that becomes whole is computed by it, from its first token.

    Args:
        engines: What computes.
        weights: The bundle's.
        owner: What the context belongs to; contexts of other bundles are refused.
        cache: Beginnings that were computed before, if any are kept.
        kept: Where keys and values go, if not into arrays of its own.
        source: What is read of an encoder, if there is one.
        prompts: Computes blocks that become whole; ``None`` where steps do. Blocks that are kept rounded are theirs.

    Attributes:
        engines: What computes.
        owner: What the context belongs to.
        source: What is read of an encoder; nothing without one.
        tokens: The sequence.
        added: What is added to the scores of its steps.
    """

    def __init__(
        self,
        engines: StepEngines,
        weights: Weights,
        owner: object,
        cache: PrefixCache | None = None,
        kept: KeptBlocks | None = None,
        source: KeptSource | None = None,
        prompts: RunsPrompts | None = None,
    ) -> None:
        self.engines = engines
        self.owner = owner
        self.tokens: list[int] = []
        self.added = AddedScores(engines.steps, weights)
        self._weights = weights
        self._cache = cache
        self._names: list[bytes] = []
        """Of the whole blocks that ``append`` computed, as the cache calls them."""
        self._kept: KeptBlocks | None = KeptBlocks(engines.steps) if kept is None else kept
        self._prompts = None if kept is not None and kept.rounds else prompts
        self._states = KeptStates(engines.steps)
        self.source = KeptSource(engines.steps, {}) if source is None else source
        self._steps: dict[tuple[int, bool, type], BoundStep | LongStep] = {}
        self._heads: dict[int, Heads] = {}
        self._forgets = engines.steps.has_rings or bool(engines.steps.states)
        self._steady = 0
        """Tokens from the start whose keys ``append`` computed."""
        self._reached = 0
        """The most whole blocks that it has had: rings have forgotten what these replaced."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def left_in_block(self) -> int:
        """Tokens until the open block is whole."""
        block = self.engines.steps.program.block_size
        return block - len(self.tokens) % block

    @property
    def nbytes(self) -> int:
        """Bytes of its keys, values and states; forks share those of an encoder."""
        return self._arrays().nbytes + self._states.nbytes + self.source.nbytes

    def append(self, tokens: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Adds tokens; returns the logits ``[classes]`` of the token behind them, in float32.

        Raises:
            InputError: There are none, one is outside of the vocabulary, or the model takes no more.
        """
        work = self.appending(tokens)
        while True:
            try:
                next(work)
            except StopIteration as ended:
                logits: npt.NDArray[np.float32] = ended.value
                return logits

    def appending(self, tokens: Sequence[int] | npt.NDArray[Any]) -> Generator[int, None, npt.NDArray[np.float32]]:
        """:meth:`append` in parts: gives the rows of every engine call behind it, and returns the logits.

        Raises:
            InputError: As there.
        """
        hidden = yield from self._appending(tokens, whole=False)
        if hidden is None:
            raise InputError("tokens", "are none", "give one or more")
        return self.logits(hidden)

    def appending_whole(
        self, tokens: Sequence[int] | npt.NDArray[Any]
    ) -> Generator[int, None, npt.NDArray[np.float32] | None]:
        """Likewise of what becomes whole blocks; ``None`` where tokens are left, which others :meth:`take`.

        Raises:
            InputError: As there.
        """
        hidden = yield from self._appending(tokens, whole=True)
        return None if hidden is None else self.logits(hidden)

    def _appending(
        self, tokens: Sequence[int] | npt.NDArray[Any], *, whole: bool
    ) -> Generator[int, None, npt.NDArray[Any] | None]:
        new = self.check(tokens)
        steady = self._steady_start(len(self.tokens) + len(new))
        again = self.tokens[steady:]
        self._cut(steady)
        hidden = yield from self._extending([*again, *new], whole=whole)
        self._steady = len(self.tokens)
        return hidden

    def take(self, tokens: Sequence[int]) -> None:
        """Counts tokens of the open block whose rows others computed and wrote into it, as :meth:`append` would."""
        self.tokens.extend(tokens)
        self._steady = len(self.tokens)

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Adds one token by the engine of one row; returns the logits behind it.

        Raises:
            InputError: As :meth:`append`.
        """
        return self.logits(self.extend([token], 1)[-1])

    def extend(self, tokens: Sequence[int], rows: int) -> npt.NDArray[Any]:
        """Adds tokens of one block by one step of ``rows`` rows; returns their hidden states ``[tokens, width]``.

        Raises:
            InputError: As :meth:`append`.
        """
        new = self.check(tokens)
        hidden = self._run(np.array(new, np.int64), len(self.tokens), len(new), rows)
        self._after_steps()
        return hidden

    def steps(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Adds tokens by engines of few rows; returns the logits ``[tokens, classes]`` behind each of them.

        Raises:
            InputError: As :meth:`append`.
        """
        new, block = self.check(tokens), self.engines.steps.program.block_size
        rows = self.engines.steps.rows[1]
        if rows not in self._heads:
            self._heads[rows] = Heads(self.engines, rows)
        found: list[npt.NDArray[np.float32]] = []
        while new:
            first = len(self.tokens)
            part, steady = new[: min(rows, block - first % block)], self._steady == first
            hidden = self._run(np.array(part, np.int64), first, len(part), rows)
            if steady and not self.engines.steps.states:
                self._steady = self._as_steady(len(self.tokens))
            self._after_steps()
            found.append(self._heads[rows].logits(hidden))
            new = new[len(part) :]
        return np.concatenate(found)

    def _after_steps(self) -> None:
        """Before rings forget what it needs, or it is rounded, a block that steps have filled is computed again."""
        steps = self.engines.steps
        forgets = self._forgets or self._arrays().rounds
        if forgets and len(self.tokens) % steps.program.block_size == 0 and self._steady < len(self.tokens):
            self._steady_again()

    def _steady_again(self) -> None:
        """Computes what ``step`` added again, as ``append`` does."""
        steady = self._steady_start(len(self.tokens))
        again = self.tokens[steady:]
        self._cut(steady)
        self._extend(again)
        self._steady = len(self.tokens)

    def rollback(self, length: int) -> None:
        """Forgets all tokens but the first ``length``.

        Layers under a window keep the last blocks only: further back than a block from where the context once was, what
        is left is computed again.
        Of states that at the beginning of the open block alone is kept: what is left of the block is computed again,
        and further back all that is left.

        Raises:
            InputError: The context is not as long.
        """
        self._arrays()
        if not 0 <= length <= len(self.tokens):
            raise InputError("rollback", f"to {length} tokens of {len(self.tokens)}", "give a length it has had")
        steps, block = self.engines.steps, self.engines.steps.program.block_size
        back = len(self.tokens) // block - length // block
        if (steps.has_rings and self._reached - length // block > 1) or (steps.states and back > 0):
            left, self.tokens, self._steady, self._reached = self.tokens[:length], [], 0, 0
            self._kept, self._states = self._arrays().fresh(), KeptStates(steps)
            self._steps.clear()
            self._names.clear()
            if left:
                self.append(left)
            return
        # A block that was kept rounded, or that a run computed, is computed again where it is open again.
        other = self._arrays().rounds or self._prompts is not None
        if length < len(self.tokens) and (steps.states or (other and back > 0)):
            left = self.tokens[length - length % block : length]
            self._cut(length - length % block)
            if left:
                self._extend(left)
            self._steady = length
            return
        self._cut(length)

    def fork(self) -> Context:
        """Another context with the same tokens, which grows on its own."""
        made = Context(self.engines, self._weights, self.owner, self._cache, source=self.source, prompts=self._prompts)
        made._names = list(self._names)
        made.tokens = list(self.tokens)
        made._kept, made._states = self._arrays().copy(), self._states.copy()
        made._steady, made._reached = self._steady, self._reached
        return made

    def facts(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the contents of the arrays, which :attr:`kept` has."""
        kept = {"tokens": list(self.tokens), "steady": self._steady, "reached": self._reached}
        return kept | ({"earlier": self._states.earlier} if self.engines.steps.states else {})

    def written(self, blocks: int) -> Iterator[npt.NDArray[Any]]:
        """Every part of its keys, values and states that holds something of so many whole blocks and the open one.

        Raises:
            InputError: It is closed.
        """
        yield from self._arrays().written(blocks)
        yield from self._states.written()

    @property
    def states(self) -> KeptStates:
        """Its states."""
        return self._states

    @property
    def kept(self) -> KeptBlocks:
        """Its keys and values.

        Raises:
            InputError: It is closed.
        """
        return self._arrays()

    def restore(self, tokens: list[int], steady: int, reached: int, earlier: int) -> bool:
        """Makes an empty context one of these tokens, whose arrays hold what :meth:`written` gave already.

        Returns:
            ``False`` where there is no state before token ``earlier``.
        """
        start = len(tokens) - len(tokens) % self.engines.steps.program.block_size
        if not self._states.restore(earlier, start, len(tokens)):
            return False
        self.tokens, self._steady, self._reached = tokens, steady, reached
        block = self.engines.steps.program.block_size
        for start in range(0, steady - steady % block if self._cache is not None else 0, block):
            if self._cache is not None:
                self._names.append(self._name(self._cache, tokens[start : start + block]))
        return True

    def close(self) -> None:
        """Lets the memory go; the context can't be used any more."""
        if self._kept is not None:
            self._kept.release()
        self._kept = None
        self._steps.clear()
        self._heads.clear()

    def accept(self, token: int) -> None:
        """Counts a token whose row was written into the open block by others, by kernels of several rows.

        The states behind it are the spare ones.
        """
        steps = self.engines.steps
        if steps.states:
            self._states.move(len(self.tokens) + 1)
        else:
            self._steady = self._as_steady(self._steady + (self._steady == len(self.tokens)))
        self.tokens.append(token)
        if len(self.tokens) % steps.program.block_size == 0:
            self._complete()
        self._after_steps()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arrays(self) -> KeptBlocks:
        if self._kept is None:
            raise InputError("context", "is closed", "open another one")
        return self._kept

    def _cut(self, length: int) -> None:
        kept, block = self._arrays(), self.engines.steps.program.block_size
        if length == len(self.tokens):
            return
        if length // block < len(self.tokens) // block and kept.reopen(length // block):
            self._steps.clear()
        kept.clear(length % block)
        self._states.cut(length)
        del self.tokens[length:]
        self._steady = min(self._steady, length)
        del self._names[length // block :]

    def check(self, tokens: Sequence[int] | npt.NDArray[Any]) -> list[int]:
        """The tokens, as whole numbers, that :meth:`append` would add.

        Raises:
            InputError: It would not.
        """
        self._arrays()
        array = np.asarray(tokens)
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise InputError("tokens", f"are {array.dtype} {list(array.shape)}", "give one or more whole numbers")
        limit = self.engines.steps.tokens.limit
        if limit is not None and (array.min() < 0 or array.max() >= limit):
            wrong = int(array[(array < 0) | (array >= limit)][0])
            raise InputError("tokens", f"hold {wrong}, and the vocabulary has {limit}", "use the model's own tokenizer")
        self._check_length(len(self.tokens) + len(array))
        return [int(token) for token in array]

    def _check_length(self, length: int) -> None:
        program = self.engines.steps.program
        if program.max_length is not None and length > program.max_length.length:
            problem = f"would have {length} tokens: the model takes {program.max_length.length}"
            fix = "generate fewer tokens, or give a shorter prompt"
            raise InputError("context", f"{problem} ({program.max_length.reason})", fix)

    def _extend(self, new: list[int]) -> None:
        """Computes ``new`` by calls of several rows."""
        for _ in self._extending(new):
            pass

    def _extending(self, new: list[int], *, whole: bool = False) -> Generator[int, None, npt.NDArray[Any] | None]:
        """Likewise, giving the rows of every call behind it; returns the last hidden states ``[width]``.

        With ``whole`` only what runs compute; ``None`` where that is not all.
        """
        steps = self.engines.steps
        tokens = np.array([*self.tokens, *new], np.int64)
        hidden: npt.NDArray[Any] | None = None
        runs = self._prompts is not None
        if runs and self._arrays().reserve(len(tokens) // steps.program.block_size):  # once, and not as they come
            self._steps.clear()
        start = self._from_cache(tokens)
        for first, count, rows in Pieces(start, len(tokens), steps.rows, runs=runs):
            if runs and count % steps.program.block_size == 0:
                hidden = self._run_whole(tokens[: first + count], first, last=first + count == len(tokens))
            elif whole:
                return None
            else:
                hidden = self._run(tokens[first : first + count], first, count, rows)[-1]
                self._to_cache()
            yield rows
        return hidden

    def _from_cache(self, tokens: npt.NDArray[np.int64]) -> int:
        """Takes whole blocks over, all but the last token; returns how many tokens there are then."""
        cache, kept, block = self._cache, self._arrays(), self.engines.steps.program.block_size
        while cache is not None and len(self.tokens) + block < len(tokens):
            start = len(self.tokens)
            if start != len(self._names) * block:
                break  # in a block, or behind one that the cache was not given
            new = [int(token) for token in tokens[start : start + block]]
            page = cache.find(self._name(cache, new))
            if page is None:
                break
            kept.open_page(page[: len(kept.opened)])
            self._states.open_page(page[len(kept.opened) :], start + block)
            self.tokens.extend(new)
            self._complete()
            self._names.append(self._name(cache, new))
        return len(self.tokens)

    def _to_cache(self) -> None:
        """Gives the cache the block that was just filled."""
        block = self.engines.steps.program.block_size
        number, rest = divmod(len(self.tokens), block)
        if self._cache is not None and not rest and number == len(self._names) + 1:
            self._names.append(self._name(self._cache, self.tokens[-block:]))
            self._cache.put(self._names[-1], [*self._arrays().page(number - 1), *self._states.page()])

    def _name(self, cache: PrefixCache, tokens: list[int]) -> bytes:
        return following(self._names[-1] if self._names else cache.first, tokens)

    def _steady_start(self, length: int) -> int:
        """Where ``append`` begins, up to a ``length``: at the first token that it did not compute.

        With states at its block, likewise where the block is kept rounded already, or becomes whole by a run.
        """
        block = self.engines.steps.program.block_size
        rounded = self._arrays().rounds and self._steady // block < len(self.tokens) // block
        runs = self._prompts is not None and self._steady // block < length // block
        return self._steady - (self._steady % block if self.engines.steps.states or rounded or runs else 0)

    def _as_steady(self, length: int) -> int:
        """How many of ``length`` tokens are as ``append`` has them, where steps of several rows computed the last."""
        if self._prompts is None or length % self.engines.steps.program.block_size:
            return length
        return length - self.engines.steps.program.block_size  # a run computes whole blocks

    def _complete(self) -> None:
        """The open block is full."""
        self._states.complete()
        kept, blocks = self._arrays(), len(self.tokens) // self.engines.steps.program.block_size
        self._reached = max(self._reached, blocks)
        grown = kept.reserve(blocks)
        if kept.complete(blocks - 1) or grown:
            self._steps.clear()

    def _run(self, tokens: npt.NDArray[np.int64], first: int, count: int, rows: int) -> npt.NDArray[Any]:
        """One call: tokens that are there already are computed again, and left as they are."""
        kept, block = self._arrays(), self.engines.steps.program.block_size
        in_place = self._in_place(rows, first)
        # Layer by layer, whole blocks are read in tiles of the widest capacity.
        room = first // block if in_place is None else in_place.room(rows, first)
        if kept.reserve(max(room, CAPACITIES[-1] if self.source.capacity is None else 0)):
            self._steps.clear()
        steps = self.engines.steps
        wide = steps.capacity(first // block) is None or self.source.capacity is None
        long = wide or kept.rounds or self.engines.layered
        key = (rows, long, type(in_place))
        if key not in self._steps:
            if long:
                self._steps[key] = LongStep(self.engines, rows, kept, self.source)
            else:
                self._steps[key] = BoundStep(self.engines, rows, kept, self.source, in_place)
        step = self._steps[key]
        step.run(tokens, first, self.added, self._states)
        self._states.move(first + count)
        skip = len(self.tokens) - first
        step.keep(kept, len(self.tokens), count - skip, skip)
        self.tokens.extend(int(token) for token in tokens[skip:])
        if len(self.tokens) % block == 0:
            self._complete()
        return np.array(step.hidden[0, skip:count])

    def _in_place(self, rows: int, first: int) -> InPlaceSteps | None:
        """How a step of ``rows`` rows from token ``first`` is written in place; ``None`` where it is not."""
        kept, blocks = self._arrays(), first // self.engines.steps.program.block_size
        found = self.engines.rows_in_place if rows > 1 else self.engines.in_place if kept.own else None
        if isinstance(kept, RoundedReads) and rows == 1 and blocks:
            found = kept.rounded.steps
        return found if found is not None and not kept.rounds and found.reach(rows, blocks) else None

    def make_room(self, rows: int | None = None, count: int = 1) -> bool:
        """Room for rows in place behind its tokens; ``False`` where they are written elsewhere from here on.

        Args:
            rows: Of a step; by default as few as there may be.
            count: Tokens, which take one such step after the other.
        """
        rows = self.engines.steps.rows[1] if rows is None else rows
        first = len(self.tokens) + (count - 1) // rows * rows
        in_place = self._in_place(rows, first)
        if in_place is None or self._arrays().reserve(in_place.room(rows, first)):
            self._steps.clear()  # the arrays have moved, or are about to
        return in_place is not None

    def _run_whole(self, tokens: npt.NDArray[np.int64], first: int, *, last: bool) -> npt.NDArray[Any] | None:
        """Computes the blocks of ``tokens`` behind token ``first``; the hidden states of the ``last`` token, if so."""
        kept, block = self._arrays(), self.engines.steps.program.block_size
        if self._prompts is None:
            raise InternalError("no runs compute whole blocks")
        made = self._prompts.run(tokens, kept, first // block, hidden=last)
        self.engines.calls += made.calls
        for at in range(0, len(tokens) - first, block):
            kept.write(0, dict(enumerate(made.kept)), block, skip=at)
            self.tokens.extend(int(token) for token in tokens[first + at : first + at + block])
            self._complete()
            self._to_cache()
        return made.hidden

    def logits(self, hidden: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The logits ``[classes]`` of hidden states ``[width]``, in float32."""
        if 1 not in self._heads:
            self._heads[1] = Heads(self.engines, 1)
        row: npt.NDArray[np.float32] = self._heads[1].logits(hidden[None])[0]
        return row
