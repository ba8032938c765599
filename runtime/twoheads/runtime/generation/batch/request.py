"""One of many prompts that are continued at once: where it stands, and what has come so far."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, InternalError
from twoheads.runtime.generation.batch.slots import Slabs, SlottedBlocks
from twoheads.runtime.generation.batch.sources import SlottedSource, SourceSlabs
from twoheads.runtime.generation.context import Context
from twoheads.runtime.generation.generated import Generated, Piece
from twoheads.runtime.generation.generator import Generator as Generating
from twoheads.runtime.generation.sequence_run import Call, SequenceRun

__all__ = ["Request", "Work"]


class Request:
    """A prompt that was submitted, and its continuation.

    Attributes:
        number: Its place among all that were submitted, from 0.
        state: ``waiting``, ``prompt`` (being computed), ``running``, ``done``, ``cancelled`` or ``failed``.
        pieces: The new tokens so far.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = "waiting"
        self.pieces: list[Piece] = []
        self.found: Generated | None = None
        self.error: InputError | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ("done", "cancelled", "failed")

    def result(self) -> Generated:
        """The whole continuation; of one that was cancelled what there was.

        Raises:
            InputError: It is not finished, was cancelled before its first token, or failed: no token was left to come.
        """
        if self.error is not None:
            raise self.error
        if self.found is None:
            problem = "was cancelled before its first token" if self.finished else f"is {self.state}"
            raise InputError(f"request {self.number}", f"{problem}: it has no result", "take steps until it is done")
        return self.found


@dataclass(frozen=True, slots=True)
class _Begun:
    """What a request has once its turn has come."""

    kept: SlottedBlocks
    source: SlottedSource
    context: Context
    run: SequenceRun


class Work:
    """What a batch knows of a request that is not finished.

    Args:
        request: Which.
        call: What it continues and how; the call's own context stays empty.
        notes: What its caller should know.

    Attributes:
        request: Which.
        logits: Behind what is computed; ``None`` while there are none to choose by.
        pending: The token that was chosen by them, until it is computed.
    """

    def __init__(self, request: Request, call: Call, notes: tuple[str, ...]) -> None:
        self.request = request
        self.logits: npt.NDArray[np.float32] | None = None
        self.pending: int | None = None
        self._call, self._notes, self._calls = call, notes, 0
        self._begun: _Begun | None = None
        self._prompt: Generator[int, None, npt.NDArray[np.float32] | None] | None = None
        self._tokens: list[int] = []

    @property
    def kept(self) -> SlottedBlocks:
        """Its keys and values."""
        return self._parts.kept

    @property
    def source(self) -> SlottedSource:
        """What it reads of an encoder."""
        return self._parts.source

    @property
    def context(self) -> Context:
        """Its tokens."""
        return self._parts.context

    @property
    def run(self) -> SequenceRun:
        """What chooses its tokens."""
        return self._parts.run

    @property
    def _parts(self) -> _Begun:
        if self._begun is None:
            raise InternalError("a request that waits has no context")
        return self._begun

    def begin(self, generator: Generating, slabs: Slabs, sources: SourceSlabs, *, together: bool = False) -> None:
        """Its turn has come: an encoder runs now. With ``together`` the prompt's :attr:`end` is left to others."""
        self.request.state, self._calls = "prompt", generator.calls
        unread, kept = self._call.unread, SlottedBlocks(slabs)
        source = SlottedSource(sources, {} if unread is None else generator.contexts.run_encoder(unread.checked))
        if source.capacity is None:
            kept.leave()
        context, prompt = generator.reader.begin(self._call, kept, source)
        run = SequenceRun(self._call, context, self._call.seeds[0], generator.reader.text_stream)
        self._begun = _Begun(kept, source, context, run)
        self._tokens = prompt
        self._prompt = context.appending_whole(prompt) if together else context.appending(prompt)

    def compute(self) -> int:
        """Computes a part of the prompt; gives the rows that this took, 0 where the prompt is done."""
        if self._prompt is None:
            return 0
        try:
            return next(self._prompt)
        except StopIteration as ended:
            self._prompt = None
            if ended.value is not None:
                self._computed(ended.value)
        return 0

    @property
    def end_tokens(self) -> list[int]:
        """The tokens of the prompt that are left to others; none while it is computed by itself."""
        waits = self.request.state == "prompt" and self._prompt is None
        return self._tokens[len(self.context) :] if waits else []

    def end_alone(self) -> None:
        """What was left to others is computed by itself."""
        self._prompt = self.context.appending(self.end_tokens)

    def take_hidden(self, hidden: npt.NDArray[np.float32]) -> None:
        """Others have computed tokens of the prompt, and the hidden states ``[width]`` behind them."""
        if not self.end_tokens:
            self._computed(self.context.logits(hidden))

    def _computed(self, logits: npt.NDArray[np.float32]) -> None:
        """The prompt is done."""
        self.logits = logits
        self.run.begin()
        self.request.state = "running"

    def choose(self) -> Piece | None:
        """The next token; ``None`` where none may come, or none is asked for."""
        if self.logits is None or self.run.ended:
            return None
        try:
            piece = self.run.choose(self.logits)
        except InputError as error:
            self.request.error = error
            return None
        self.logits, self.pending = None, piece.token
        self.request.pieces.append(piece)
        return piece

    def take_logits(self, logits: npt.NDArray[np.float32]) -> None:
        """The pending token is computed; these ``[classes]`` are behind it."""
        self.logits, self.pending = logits, None

    def end(self, calls: int, state: str = "done") -> None:
        """Lets go of all but the result."""
        request = self.request
        request.state = "failed" if request.error is not None else state
        if self._begun is None:
            return
        if self._prompt is not None:
            self._prompt.close()
        if request.pieces or request.state == "done":
            made = replace(self.run.result(), engine_calls=calls - self._calls, warnings=self._notes)
            request.found = replace(made, finish_reason="cancelled") if state == "cancelled" else made
        self.context.close()
        self.source.release()
