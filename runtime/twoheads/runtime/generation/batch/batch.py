"""Many prompts at once: requests join between steps, each gets a token a step, and those that are done leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.batch.request import Request, Work
from twoheads.runtime.generation.batch.slots import Slabs
from twoheads.runtime.generation.batch.sources import SourceSlabs
from twoheads.runtime.generation.batch.step import NextToken
from twoheads.runtime.generation.batch.step_lanes import StepLanes
from twoheads.runtime.generation.batch.together import PromptEnd, prompts_together
from twoheads.runtime.generation.call_reader import Prompt
from twoheads.runtime.generation.generated import Piece
from twoheads.runtime.generation.generator import Generator

__all__ = ["Batch"]

MOST = 32
"""Requests that are computed at the same time, where nobody says how many."""

PROMPT_BLOCKS = 8
"""Of rows of prompts that one step computes at most: a step of few requests costs what a full one does."""


class Batch:
    """Continues prompts, many at the same time. One thread uses it at a time.

    What a request gets does not depend, to the bit, on what else is there: it is what ``generate(..., steady=True)``
    gives. Its rows are computed by the same engines, of the same shapes, in the same order of sums, whoever its
    neighbours are.

    Args:
        generator: Of the bundle.
        most: Requests that are computed at the same time; others wait for their turn.

    Raises:
        InputError: ``most`` is not 1 or more; or the backend runs what was built for a target, which has none of it.
        BundleError: The bundle was compiled without the engines for it.
    """

    def __init__(self, generator: Generator, *, most: int = MOST) -> None:
        if most < 1:
            raise InputError("open_batch", f"has room for {most} requests", "give 1 or more")
        self._generator = generator
        self._engines = generator.model.engines
        if self._engines.built is not None:
            problem = f"is not built for accelerators: backend {self._engines.backend.name} continues one at a time"
            raise InputError("open_batch", problem, "call generate for each")
        self._most = most
        self._slabs, self._sources = Slabs(generator.model.steps), SourceSlabs(generator.model.steps)
        self._in_place = self._engines.rows_in_place
        self._together = prompts_together(self._engines) if most > 1 else None
        self._lanes = StepLanes(self._engines, most)
        self._waiting: deque[Work] = deque()
        self._active: list[Work] = []
        self._submitted = 0
        self._new: list[tuple[Request, Piece]] = []  # of a step that has not come to its end

    @property
    def idle(self) -> bool:
        """Whether every request is finished."""
        return not self._waiting and not self._active

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values that lie in slots, those of encoders among them."""
        return self._slabs.nbytes + self._sources.nbytes

    def submit(self, prompt: Prompt, **options: Any) -> Request:
        """Puts a prompt in the queue. An encoder runs when the prompt's turn comes.

        Args:
            prompt: A text, tokens, or messages; of an encoder what that reads.
            **options: As of :meth:`Generator.generate`, but of those that one sequence alone can have: a context,
                speculation, several sequences, a streamer, pages of another kind.

        Raises:
            InputError: As there, at once: a request that can't be is never in the queue.
        """
        alone = ("context", "speculate", "streamer", "pages")
        for name in alone:
            if options.get(name) not in (None, False):
                raise InputError(name, "is not for requests of a batch", "leave it out, or call generate")
        options = {name: value for name, value in options.items() if name not in alone}
        call = self._generator.reader.open(prompt, True, **options)
        if len(call.seeds) != 1:
            raise InputError("num_return_sequences", "is more than 1", "submit the prompt as often, each with a seed")
        call.context.check(call.prompt)
        request = Request(self._submitted)
        self._submitted += 1
        self._waiting.append(Work(request, call, self._generator.reader.notes(call)))
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request as it is; one that is finished stays so.

        Raises:
            InputError: It is of another batch.
        """
        for group in (self._waiting, self._active):
            for work in group:
                if work.request is request:
                    group.remove(work)
                    work.end(self._engines.calls, "cancelled")
                    return
        if not request.finished:
            raise InputError("request", "is of another batch", "cancel it there")

    def step(self) -> list[tuple[Request, Piece]]:
        """Computes a few blocks of rows of new prompts, and one token of every request that is running.

        Returns:
            The new tokens, with whose they are.

        Raises:
            TwoheadsError: An engine fails. (What a request itself does wrong is its own error; see
                :meth:`Request.result`.) The next step goes on where this one was stopped, as after an interrupt.
        """
        self._join()
        self._prompts()
        for work in [work for work in self._active if work.request.state == "running"]:
            if work.pending is not None:
                continue
            piece = work.choose()
            if piece is not None:
                self._new.append((work.request, piece))
            if piece is None or work.run.ended:
                self._active.remove(work)
                work.end(self._engines.calls)
        self._compute([(work, work.pending) for work in self._active if work.pending is not None])
        new, self._new = self._new, []
        return new

    def __iter__(self) -> Iterator[tuple[Request, Piece]]:
        """All new tokens, as they come, until every request is finished; more may be submitted meanwhile."""
        while not self.idle:
            yield from self.step()

    def close(self) -> None:
        """Cancels what is not finished."""
        for work in (*self._waiting, *self._active):
            work.end(self._engines.calls, "cancelled")
        self._waiting.clear()
        self._active.clear()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self) -> None:
        while self._waiting and len(self._active) < self._most:
            work = self._waiting.popleft()
            work.begin(self._generator, self._slabs, self._sources, together=self._together is not None)
            self._active.append(work)

    def _prompts(self) -> None:
        """Computes prompts in the order in which they came, in parts, so that nobody waits long for the next token.

        Ends that were left to others go first: they have waited for a step.
        """
        left = self._ends(PROMPT_BLOCKS * self._generator.model.steps.program.block_size)
        for work in self._active:
            left = self._part(work, left)
        self._ends(left)

    def _part(self, work: Work, left: int) -> int:
        """Computes a prompt by itself, as long as rows are ``left``; returns how many are left then."""
        while left > 0 and work.request.state == "prompt" and not work.end_tokens:
            left -= work.compute()
        return left

    def _ends(self, left: int) -> int:
        """Computes ends of prompts together, as :meth:`_part`; those that do not fill half of a call by themselves."""
        while left > 0 and self._together is not None:
            rows, ends = self._together.rows, list[tuple[Work, PromptEnd]]()
            for work in self._active:
                room = rows - sum(len(end.tokens) for _, end in ends)
                tokens = work.end_tokens[:room]
                if tokens and work.context.make_room(self._together.attended, len(tokens)):
                    ends.append((work, PromptEnd(work.context, tokens)))
            if 2 * sum(len(end.tokens) for _, end in ends) <= rows:
                break
            for (work, _), hidden in zip(ends, self._together.run([end for _, end in ends]), strict=True):
                work.take_hidden(hidden)
            left -= rows
        for work in self._active:
            if left > 0 and work.end_tokens:
                work.end_alone()
                left = self._part(work, left)
        return left

    def _compute(self, next_tokens: list[tuple[Work, int]]) -> None:
        """Computes a token of each of these; of contexts that are too long for slots, one by one."""
        for work, _ in next_tokens:
            if self._in_place is not None and work.kept.place is not None and not work.context.make_room():
                work.kept.leave()
        slotted = [(work, token) for work, token in next_tokens if work.kept.place is not None]
        for work, token in next_tokens:
            if work.kept.place is None:
                work.take_logits(work.context.steps([token])[0])
        if slotted:
            given = [NextToken(work.context, work.kept, work.source, token) for work, token in slotted]
            for (work, _), logits in zip(slotted, self._lanes.run(given), strict=True):
                work.take_logits(logits)
