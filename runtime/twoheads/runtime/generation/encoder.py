"""How a sequence of an encoder-decoder begins: what its encoder reads, and the first tokens of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.choosing.settings import Settings
from twoheads.runtime.generation.choosing.speech import Speech
from twoheads.runtime.generation.context import Context

__all__ = ["OPTIONS", "Beginning", "RunsEncoder", "Unread", "as_source"]

OPTIONS = ("decoder_input_ids", "language", "task")
"""What a call on an encoder-decoder may say beside the rest."""


class RunsEncoder(Protocol):
    """Runs the encoder of a bundle."""

    def check(self, given: Any) -> Any:
        """What it reads, or why that is none."""
        ...

    def run(self, checked: Any) -> tuple[Mapping[str, npt.NDArray[Any]], int]:
        """What cross attention reads, by name, and how many engine calls that took."""
        ...


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a caller says of the decoder's beginning.

    Attributes:
        decoder_input_ids: Its first tokens; the model's own start token goes in front where it is not there.
        language, task: Of speech.
    """

    decoder_input_ids: Sequence[int] | npt.NDArray[Any] | None = None
    language: str | None = None
    task: str | None = None

    def check(self, *, encoder: bool, continued: bool, speech: Speech | None) -> None:
        """Refuses what says nothing to the model.

        Args:
            encoder: Whether the model has one.
            continued: Whether a context is continued, which has begun.
            speech: What the model knows of speech, if it does.

        Raises:
            InputError: Names it.
        """
        for name in OPTIONS:
            value = getattr(self, name)
            if value is None:
                continue
            if not encoder:
                raise InputError(name, "is for models with an encoder", "leave it out; the prompt is the beginning")
            if continued:
                raise InputError(name, "is given beside a context, which has begun", "leave one of them out")
            spoken = isinstance(value, str) and speech is not None and self.decoder_input_ids is None
            if name != OPTIONS[0] and not spoken:
                fix = "give a text, to a model of speech, without decoder_input_ids"
                raise InputError(name, f"is {value!r:.60}", fix)

    def tokens(self, settings: Settings, speech: Speech | None, context: Context | None) -> list[int]:
        """The decoder's first tokens.

        Args:
            settings: Of the call.
            speech: What the model knows of speech, if it does.
            context: An empty one, which finds out a language; without one, any language stands for that.

        Raises:
            InputError: The model says no start token, or what is given is none.
        """
        starts = settings.decoder_start_token_id or settings.bos_token_id
        if len(starts) != 1:
            fix = "give decoder_start_token_id"
            raise InputError("decoder_start_token_id", f"is {list(starts)}: the decoder needs one", fix)
        start = starts[0]
        if self.decoder_input_ids is not None:
            given = np.asarray(self.decoder_input_ids)
            given = given[0] if given.ndim == 2 and len(given) == 1 else given
            if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
                raise InputError("decoder_input_ids", f"are {given.dtype} {list(given.shape)}", "give tokens [N]")
            tokens = [int(token) for token in given]
            return tokens if speech is not None or tokens[0] == start else [start, *tokens]
        if speech is None:
            return [start]

        def detect(among: Sequence[int]) -> int:
            if context is None:
                return among[0]
            logits = context.append([start])
            context.rollback(0)
            return max(among, key=lambda token: float(logits[token]))

        return speech.tokens(start, self.language, self.task, detect)


@dataclass(frozen=True, slots=True)
class Unread:
    """A sequence behind an encoder that has not run yet.

    Attributes:
        checked: What the encoder reads.
        beginning: What the decoder begins with.
    """

    checked: Any
    beginning: Beginning


def as_source(prompt: Any, encode: Callable[[str], list[int]]) -> Any:
    """A prompt as what an encoder reads: arrays by name, or one array.

    Args:
        prompt: A text, tokens ``[m]``, features, or a mapping of arrays.
        encode: The tokens of a text, special ones among them.

    Raises:
        InputError: It is a conversation, or nothing of these.
    """
    if isinstance(prompt, str):
        return np.asarray([encode(prompt)], np.int64)
    if isinstance(prompt, Mapping):
        return prompt
    if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
        raise InputError("prompt", "is a conversation, and the model has an encoder", "give a text, tokens or arrays")
    try:
        array = np.asarray(prompt)
    except (ValueError, OverflowError):  # rows of different lengths
        raise InputError("prompt", "is no array", "give a text, tokens [m] or arrays by name") from None
    return array[None] if array.ndim == 1 else array
