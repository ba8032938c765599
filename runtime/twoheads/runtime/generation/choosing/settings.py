"""How tokens are chosen: the fields of ``generation_config.json``, with the meaning and defaults of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from twoheads.graphs.errors import InputError

__all__ = ["Settings", "split_unsupported"]

SILENT = frozenset(
    {
        "_commit_hash",
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "disable_compile",
        "early_stopping",
        "is_assistant",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "return_dict_in_generate",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    }
)
"""Fields that change no token of what we do: how the library computes or returns, padding, beams' scores."""

NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "prompt_lookup_num_tokens": None,
    "token_healing": False,
}
"""Fields that we do not have, with the value at which they do nothing; any other is refused."""

BEAMS = "give num_beams=1 (--set num_beams=1) for the most likely token each time: that is another text than beams find"
"""What an error about beams says to do: many models of translation and summaries ask for them themselves."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """One request's; the names, meanings and defaults are those of transformers' ``GenerationConfig``.

    Attributes:
        max_new_tokens: The most that are generated. max_length: The same with the prompt counted, where the former is
            ``None``; with neither, 20.
        min_new_tokens, min_length: Before so many there is no end token.
        max_time: Seconds after which no further token is begun.
        stop_strings: Texts that end it.
        eos_token_id: Tokens that end it.
        do_sample: Draw from the distribution, instead of taking the most likely.
        temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: What shapes it, for samples.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids, sequence_bias: What keeps tokens from coming, or makes
            them come.
        suppress_tokens, begin_suppress_tokens: That never come, or not as the first.
        bos_token_id, decoder_start_token_id: With what a decoder behind an encoder begins: the latter, if there is one.
        forced_bos_token_id: The token behind a first one. forced_eos_token_id: The last of as many as there may be.
        exponential_decay_length_penalty: (start, factor): from there on the end becomes more likely.
        remove_invalid_values: Replace what is no number in the logits.
        renormalize_logits: Give log-probabilities to whoever reads the scores.
        num_return_sequences: Continuations of one prompt.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    max_time: float | None = None
    stop_strings: tuple[str, ...] = ()
    eos_token_id: Ids = ()
    do_sample: bool = False
    temperature: float = 1.0
    top_h: float | None = None
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[Ids, ...] = ()
    sequence_bias: tuple[tuple[Ids, float], ...] = ()
    suppress_tokens: Ids = ()
    begin_suppress_tokens: Ids = ()
    bos_token_id: Ids = ()
    decoder_start_token_id: Ids = ()
    forced_bos_token_id: Ids = ()
    forced_eos_token_id: Ids = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    num_return_sequences: int = 1

    def new_tokens(self, prompt: int) -> int:
        """The most tokens behind a prompt of so many."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 20 if self.max_length is None else max(0, self.max_length - prompt)

    def changed(self, given: Mapping[str, Any], where: str) -> Settings:
        """These with the fields ``given``; ``None`` leaves one as it is.

        Args:
            given: By name.
            where: How errors call them.

        Raises:
            InputError: A field is unknown, is one that we do not have, or has an impossible value; names it.
        """
        known = {field.name for field in fields(self)}
        changes: dict[str, Any] = {}
        for name, value in given.items():
            if value is None or name in SILENT:
                continue
            if name in known:
                changes[name] = _converted(name, value, where)
            elif name not in NEUTRAL:
                raise InputError(where, f"has the unknown field {name!r}", f"it may have {', '.join(sorted(known))}")
            elif value != NEUTRAL[name]:
                fix = BEAMS if name == "num_beams" else f"give {name} {NEUTRAL[name]!r}"
                raise InputError(where, f"asks for {name} {value!r}, which is not supported", fix)
        made = replace(self, **changes)
        _check(made, where)
        return made


def split_unsupported(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's own settings, and those of them that are refused unless a call says otherwise."""
    refused = {name: value for name, value in settings.items() if name in NEUTRAL and value is not None}
    return {name: value for name, value in settings.items() if name not in refused}, refused


def _converted(name: str, value: Any, where: str) -> Any:
    """``value`` in the type of the field ``name``."""
    try:
        return _CONVERTERS[name](value)
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
        raise InputError(where, f"has {name} {value!r}", f"give {_expected(name)}") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(value)
    return int(value)


def _id(value: Any) -> int:
    """The number of a token; where a vocabulary ends is not known here, and some files say -1 for none."""
    number = _whole(value)
    if abs(number) >= 1 << 31:
        raise OverflowError(value)
    return number


def _real(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError(value)
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _ids(value: Any) -> Ids:
    return tuple(map(_id, value)) if isinstance(value, Sequence | set | frozenset) else (_id(value),)


def _strings(value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in found):
        raise TypeError(value)
    return found


def _words(value: Any) -> tuple[Ids, ...]:
    return tuple(tuple(map(_id, word)) for word in value)


def _biases(value: Any) -> tuple[tuple[Ids, float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    return tuple((tuple(map(_id, ids)), _real(bias)) for ids, bias in pairs)


def _decay(value: Any) -> tuple[int, float]:
    start, factor = value
    return _whole(start), _real(factor)


_CONVERTERS: Mapping[str, Any] = {
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size"), _whole
    ),
    **dict.fromkeys(("max_time", "temperature", "top_h", "top_p", "min_p", "typical_p", "epsilon_cutoff"), _real),
    **dict.fromkeys(("eta_cutoff", "repetition_penalty"), _real),
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits"), _truth),
    **dict.fromkeys(("eos_token_id", "suppress_tokens", "begin_suppress_tokens"), _ids),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"), _ids),
    "num_return_sequences": _whole,
    "stop_strings": _strings,
    "bad_words_ids": _words,
    "sequence_bias": _biases,
    "exponential_decay_length_penalty": _decay,
}

_LEAST: Mapping[str, int] = {
    "max_new_tokens": 0,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
}


def _expected(name: str) -> str:
    kind = {_whole: "a whole number", _real: "a number", _truth: "true or false", _ids: "token numbers"}
    other = {_strings: "one or more texts", _words: "lists of token numbers", _decay: "a start and a factor"}
    return (kind | other).get(_CONVERTERS[name], "pairs of token numbers and a bias")


def _check(made: Settings, where: str) -> None:
    """Refuses values that mean nothing."""
    for name, least in _LEAST.items():
        value = getattr(made, name)
        if value is not None and value < least:
            raise InputError(where, f"has {name} {value}", f"give {least} or more")
    rules: tuple[tuple[str, bool, str], ...] = (
        ("temperature", made.temperature > 0, "give more than 0; for the most likely token leave out do_sample"),
        ("top_p", 0 < made.top_p <= 1, "give more than 0, at most 1"),
        ("min_p", made.min_p is None or 0 <= made.min_p <= 1, "give 0 to 1"),
        ("top_h", made.top_h is None or 0 < made.top_h <= 1, "give more than 0, at most 1"),
        ("typical_p", 0 < made.typical_p <= 1, "give more than 0, at most 1"),
        ("epsilon_cutoff", 0 <= made.epsilon_cutoff < 1, "give 0 to less than 1"),
        ("eta_cutoff", 0 <= made.eta_cutoff < 1, "give 0 to less than 1"),
        ("repetition_penalty", made.repetition_penalty > 0, "give more than 0; 1 changes nothing"),
        ("max_time", made.max_time is None or made.max_time > 0, "give more than 0 seconds"),
        ("stop_strings", all(made.stop_strings), "give texts that are not empty"),
        ("bad_words_ids", all(map(_is_word, made.bad_words_ids)), "give lists of token numbers that are not empty"),
        ("sequence_bias", all(_is_word(ids) for ids, _ in made.sequence_bias), "give token numbers, one or more"),
        ("forced_bos_token_id", len(made.forced_bos_token_id) < 2, "give one token"),
        ("num_return_sequences", made.do_sample or made.num_return_sequences == 1, "give do_sample as well"),
    )
    for name, holds, fix in rules:
        if not holds:
            raise InputError(where, f"has {name} {getattr(made, name)!r}", fix)


def _is_word(ids: Ids) -> bool:
    return bool(ids) and min(ids) >= 0
