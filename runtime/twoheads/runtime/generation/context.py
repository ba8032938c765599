"""A sequence that grows: tokens are appended, or added one by one, and cut off again."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.generation.kept.held_sequence import KeptSequence
from twoheads.runtime.generation.kept.kept_source import KeptSource
from twoheads.runtime.generation.kept.prompt_blocks import RunsPrompts
from twoheads.runtime.generation.kept.rows import KeptBlocks
from twoheads.runtime.generation.kept.states import KeptStates
from twoheads.runtime.generation.steps.added import AddedScores
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.steps.sequence_calls import SequenceCalls

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
        sequence: What is held of it.
        prompts: Computes blocks that become whole; ``None`` where steps do. Blocks that are kept rounded are theirs.

    Attributes:
        engines: What computes.
        owner: What the context belongs to.
    """

    def __init__(
        self,
        engines: StepEngines,
        weights: Weights,
        owner: object,
        sequence: KeptSequence,
        prompts: RunsPrompts | None = None,
    ) -> None:
        self.engines = engines
        self.owner = owner
        self._weights = weights
        self._sequence = sequence
        self._prompts = None if sequence.kept.rounds else prompts
        self._calls = SequenceCalls(engines, weights, sequence, self._prompts)
        self._has_states = bool(engines.steps.states)
        self._forgets = engines.steps.has_rings or self._has_states

    def __len__(self) -> int:
        return len(self._sequence)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tokens(self) -> list[int]:
        """The sequence."""
        return self._sequence.tokens

    @property
    def kept(self) -> KeptBlocks:
        """Its keys and values.

        Raises:
            InputError: It is closed.
        """
        return self._sequence.kept

    @property
    def states(self) -> KeptStates:
        """Its states."""
        return self._sequence.states

    @property
    def source(self) -> KeptSource:
        """What is read of an encoder; nothing without one."""
        return self._sequence.source

    @property
    def added(self) -> AddedScores:
        """What is added to the scores of its steps."""
        return self._calls.added

    @property
    def left_in_block(self) -> int:
        """Tokens until the open block is whole."""
        block = self._sequence.block
        return block - len(self) % block

    @property
    def nbytes(self) -> int:
        """Bytes of its keys, values and states; forks share those of an encoder."""
        return self._sequence.nbytes

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
        new, sequence = self.check(tokens), self._sequence
        steady = self._steady_start(len(sequence) + len(new))
        again = sequence.tokens[steady:]
        sequence.cut(steady)
        hidden = yield from self._calls.extending([*again, *new], whole=whole)
        sequence.steady = len(sequence)
        return hidden

    def take(self, tokens: Sequence[int]) -> None:
        """Counts tokens of the open block whose rows others computed and wrote into it, as :meth:`append` would."""
        self._sequence.tokens.extend(tokens)
        self._sequence.steady = len(self)

    def step(self, token: int) -> npt.NDArray[np.float32]:
        """Adds one token by the engine of one row, if there is one; returns the logits behind it.

        Raises:
            InputError: As :meth:`append`.
        """
        if self.engines.least_rows > 1:  # by the kernels of `append`, so that it need not be computed again
            row: npt.NDArray[np.float32] = self.steps([token])[0]
            return row
        return self.logits(self.extend([token], 1)[-1])

    def extend(self, tokens: Sequence[int], rows: int) -> npt.NDArray[Any]:
        """Adds tokens of one block by one step of ``rows`` rows; returns their hidden states ``[tokens, width]``.

        Raises:
            InputError: As :meth:`append`.
        """
        new = self.check(tokens)
        hidden = self._calls.step(np.array(new, np.int64), len(self), rows)
        self._after_steps()
        return hidden

    def steps(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Adds tokens by engines of few rows; returns the logits ``[tokens, classes]`` behind each of them.

        Raises:
            InputError: As :meth:`append`.
        """
        new, sequence, rows = self.check(tokens), self._sequence, self.engines.steps.rows[1]
        heads = self._calls.heads(rows)
        found: list[npt.NDArray[np.float32]] = []
        while new:
            first = len(sequence)
            part, steady = new[: min(rows, self.left_in_block)], sequence.steady == first
            hidden = self._calls.step(np.array(part, np.int64), first, rows)
            if steady and not self._has_states:
                sequence.steady = self._as_steady(len(sequence))
            self._after_steps()
            found.append(heads.logits(hidden))
            new = new[len(part) :]
        return np.concatenate(found)

    def accept(self, token: int) -> None:
        """Counts a token whose row was written into the open block by others, by kernels of several rows.

        The states behind it are the spare ones.
        """
        sequence = self._sequence
        if self._has_states:
            sequence.states.move(len(sequence) + 1)
        else:
            sequence.steady = self._as_steady(sequence.steady + (sequence.steady == len(sequence)))
        sequence.add([token])
        self._after_steps()

    def make_room(self, rows: int | None = None, count: int = 1) -> bool:
        """Room for rows in place behind its tokens; ``False`` where they are written elsewhere from here on.

        Args:
            rows: Of a step; by default as few as there may be.
            count: Tokens, which take one such step after the other.
        """
        return self._calls.make_room(self.engines.steps.rows[1] if rows is None else rows, count)

    def logits(self, hidden: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The logits ``[classes]`` of hidden states ``[width]``, in float32."""
        row: npt.NDArray[np.float32] = self._calls.heads(1).logits(hidden[None])[0]
        return row

    def rollback(self, length: int) -> None:
        """Forgets all tokens but the first ``length``.

        Layers under a window keep the last blocks only: further back than a block from where the context once was, what
        is left is computed again.
        Of states that at the beginning of the open block alone is kept: what is left of the block is computed again,
        and further back all that is left.

        Raises:
            InputError: The context is not as long.
        """
        sequence, block = self._sequence, self._sequence.block
        rounds = sequence.kept.rounds
        if not 0 <= length <= len(sequence):
            raise InputError("rollback", f"to {length} tokens of {len(sequence)}", "give a length it has had")
        if not sequence.can_cut(length):
            left = sequence.tokens[:length]
            sequence.clear()
            if left:
                self.append(left)
            return
        # A block that was kept rounded, or that a run computed, is computed again where it is open again.
        other = (rounds or self._calls.runs) and length // block < len(sequence) // block
        if length < len(sequence) and (self._has_states or other):
            start = length - length % block
            left = sequence.tokens[start:length]
            sequence.cut(start)
            steady = sequence.steady == start  # or steps wrote rows before it, which ``append`` would compute again
            if left:
                self._calls.extend(left)
            if steady:
                sequence.steady = length
            return
        sequence.cut(length)

    def fork(self) -> Context:
        """Another context with the same tokens, which grows on its own."""
        return Context(self.engines, self._weights, self.owner, self._sequence.copy(), self._prompts)

    def facts(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the contents of the arrays, which :attr:`kept` has."""
        return self._sequence.facts()

    def written(self, blocks: int) -> Iterator[npt.NDArray[Any]]:
        """Every part of its keys, values and states that holds something of so many whole blocks and the open one.

        Raises:
            InputError: It is closed.
        """
        yield from self._sequence.written(blocks)

    def restore(self, tokens: list[int], steady: int, reached: int, earlier: int) -> bool:
        """Makes an empty context one of these tokens, whose arrays hold what :meth:`written` gave already.

        Returns:
            ``False`` where there is no state before token ``earlier``.
        """
        return self._sequence.restore(tokens, steady, reached, earlier)

    def close(self) -> None:
        """Lets the memory go; the context can't be used any more."""
        self._sequence.close()
        self._calls.close()

    def check(self, tokens: Sequence[int] | npt.NDArray[Any]) -> list[int]:
        """The tokens, as whole numbers, that :meth:`append` would add.

        Raises:
            InputError: It would not.
        """
        _ = self._sequence.kept  # refuses one that is closed
        array = np.asarray(tokens)
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise InputError("tokens", f"are {array.dtype} {list(array.shape)}", "give one or more whole numbers")
        limit = self.engines.steps.tokens.limit
        if limit is not None and (array.min() < 0 or array.max() >= limit):
            wrong = int(array[(array < 0) | (array >= limit)][0])
            raise InputError("tokens", f"hold {wrong}, and the vocabulary has {limit}", "use the model's own tokenizer")
        self._check_length(len(self) + len(array))
        return [int(token) for token in array]

    def _check_length(self, length: int) -> None:
        program = self.engines.steps.program
        if program.max_length is not None and length > program.max_length.length:
            problem = f"would have {length} tokens: the model takes {program.max_length.length}"
            fix = "generate fewer tokens, or give a shorter prompt"
            raise InputError("context", f"{problem} ({program.max_length.reason})", fix)

    def _after_steps(self) -> None:
        """Before rings forget what it needs, or it is rounded, a block that steps have filled is computed again."""
        sequence = self._sequence
        forgets = self._forgets or sequence.kept.rounds
        if forgets and len(sequence) % sequence.block == 0 and sequence.steady < len(sequence):
            steady = self._steady_start(len(sequence))
            again = sequence.tokens[steady:]
            sequence.cut(steady)
            self._calls.extend(again)
            sequence.steady = len(sequence)

    def _steady_start(self, length: int) -> int:
        """Where ``append`` begins, up to a ``length``: at the first token that it did not compute.

        With states at its block, likewise where the block is kept rounded already, or becomes whole by a run.
        """
        steady, block = self._sequence.steady, self._sequence.block
        rounded = self._sequence.kept.rounds and steady // block < len(self) // block
        runs = self._calls.runs and steady // block < length // block
        return steady - (steady % block if self._has_states or rounded or runs else 0)

    def _as_steady(self, length: int) -> int:
        """How many of ``length`` tokens are as ``append`` has them, where steps of several rows computed the last."""
        block = self._sequence.block
        return length - block if self._calls.runs and length % block == 0 else length  # a run computes whole blocks
