"""What a model of speech is told first: the language, the task, and that no times are wanted (Whisper).

The fields of its ``generation_config.json`` and the order of the tokens are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twoheads.graphs.errors import InputError

__all__ = ["Speech", "split_speech"]

FIELDS = frozenset(
    {
        "alignment_heads",
        "forced_decoder_ids",
        "is_multilingual",
        "lang_to_id",
        "language",
        "max_initial_timestamp_index",
        "median_filter_width",
        "no_timestamps_token_id",
        "prev_sot_token_id",
        "return_timestamps",
        "task",
        "task_to_id",
    }
)
"""Fields of such models; those that speak of times alone are read and not used, as no times are given."""

TRANSCRIBE = "transcribe"


@dataclass(frozen=True, slots=True)
class Speech:
    """What such a model knows.

    Attributes:
        languages: Token of every language, by a name such as ``<|en|>``.
        tasks: Token of every task.
        no_times: The token that says that no times are wanted, or ``None``.
        forced: The tokens behind the first one by the old field; ``None`` among them for a language to be found out.
        language, task: The model's own choice.
    """

    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_times: int | None
    forced: tuple[int | None, ...]
    language: str | None
    task: str | None

    def tokens(
        self, start: int, language: str | None, task: str | None, detect: Callable[[Sequence[int]], int]
    ) -> list[int]:
        """The decoder's first tokens.

        Args:
            start: The first of all.
            language: As a code such as ``en``; ``None`` for the model's own choice, or to find it out.
            task: Likewise; of what is given neither in the settings, ``transcribe``.
            detect: Which of some tokens is the most likely behind the first one.

        Raises:
            InputError: The model knows no such language or task.
        """
        language, task = language or self.language, task or self.task
        made: list[int | None] = [start, *(self.forced if language is None and task is None else ())]
        if language is not None:
            made = [start, self._language(language)]
        elif self.languages and (len(made) < 2 or made[1] is None):
            made = [start, detect(tuple(self.languages.values())), *made[2:]]
        if task is not None:
            made.append(_known("task", task, self.tasks))
        elif language is not None and self.tasks:
            made.append(_known("task", TRANSCRIBE, self.tasks))
        if self.no_times is not None and made[-1] != self.no_times:
            made.append(self.no_times)
        return [token for token in made if token is not None]

    def _language(self, language: str) -> int:
        code = language.lower()
        return _known("language", code if code in self.languages else f"<|{code}|>", self.languages)


def _known(what: str, name: str, table: Mapping[str, int]) -> int:
    if name not in table:
        known = ", ".join(sorted(key.strip("<|>") for key in table)) or "nothing: it has one only"
        raise InputError(what, f"{name.strip('<|>')!r:.40} is none that the model knows", f"give one of {known:.300}")
    return table[name]


def split_speech(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Speech | None]:
    """The settings without the fields of speech, and what these say; ``None`` where there are none.

    Raises:
        InputError: They ask for times, or are not of the form that such models have.
    """
    if not FIELDS & settings.keys():
        return dict(settings), None
    rest = {name: value for name, value in settings.items() if name not in FIELDS}
    if settings.get("return_timestamps"):
        raise InputError(where, "asks for return_timestamps, which is not supported", "leave it out")
    try:
        made = Speech(
            languages={str(name): int(token) for name, token in (settings.get("lang_to_id") or {}).items()},
            tasks={str(name): int(token) for name, token in (settings.get("task_to_id") or {}).items()},
            no_times=_optional(settings.get("no_timestamps_token_id")),
            forced=_forced(settings.get("forced_decoder_ids") or ()),
            language=None if settings.get("language") is None else str(settings["language"]),
            task=None if settings.get("task") is None else str(settings["task"]),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(where, f"has fields of speech of another form ({error})", "compile the model again") from error
    return rest, made


def _optional(token: Any) -> int | None:
    return None if token is None else int(token)


def _forced(pairs: Sequence[Sequence[Any]]) -> tuple[int | None, ...]:
    """The tokens of ``forced_decoder_ids``: pairs of a place, which count from 1, and a token."""
    if [int(place) for place, _ in pairs] != list(range(1, len(pairs) + 1)):
        raise ValueError(f"forced_decoder_ids {pairs!r:.80} leave places out")
    return tuple(_optional(token) for _, token in pairs)
