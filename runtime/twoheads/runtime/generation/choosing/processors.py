"""What changes logits before a token is chosen, in the order in which transformers does it.

A processor is called with the tokens so far and the logits ``[classes]``, float32, and returns others. Rules about
tokens come first, then the caller's own, then what shapes the distribution of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.runtime.generation.choosing import warpers
from twoheads.runtime.generation.choosing.settings import Ids, Settings

__all__ = ["LogitsProcessor", "Scores", "processors"]

Scores: TypeAlias = npt.NDArray[np.float32]
LogitsProcessor: TypeAlias = Callable[[Sequence[int], Scores], Scores]
NEVER = np.float32(-np.inf)


def processors(settings: Settings, prompt: int, own: Sequence[LogitsProcessor] = ()) -> list[LogitsProcessor]:
    """Those that ``settings`` ask for, in order.

    Args:
        settings: The request's.
        prompt: Tokens of the prompt.
        own: Of the caller; between the rules and what shapes samples.
    """
    made = [*_rules(settings, prompt), *own]
    if settings.do_sample:
        made += [_plain(warp) for warp in _warpers(settings)]
    if settings.renormalize_logits:
        made.append(_plain(warpers.log_softmax))
    return made


def _rules(settings: Settings, prompt: int) -> Iterator[LogitsProcessor]:
    ends = settings.eos_token_id
    if settings.sequence_bias:
        yield _sequence_bias(settings.sequence_bias)
    if settings.repetition_penalty != 1.0:
        yield _repetition_penalty(settings.repetition_penalty)
    if settings.no_repeat_ngram_size:
        yield _no_repeat(settings.no_repeat_ngram_size)
    if settings.bad_words_ids:
        bad = (word for word in settings.bad_words_ids if not (len(word) == 1 and word[0] in ends))
        yield _sequence_bias(tuple((word, float(NEVER)) for word in bad))
    shortest = max(settings.min_length, prompt + settings.min_new_tokens)
    if ends and (settings.min_length or settings.min_new_tokens):
        yield _while(lambda tokens: len(tokens) < shortest, ends)
    if settings.forced_bos_token_id:
        yield _forced(1, settings.forced_bos_token_id)
    if settings.forced_eos_token_id:
        yield _forced(prompt + settings.new_tokens(prompt) - 1, settings.forced_eos_token_id)
    if settings.remove_invalid_values:
        yield _plain(_finite)
    if settings.exponential_decay_length_penalty is not None and ends:
        start, factor = settings.exponential_decay_length_penalty
        yield _ending(start + prompt, factor, ends)
    if settings.suppress_tokens:
        yield _while(lambda _: True, settings.suppress_tokens)
    if settings.begin_suppress_tokens:
        begin = prompt + (prompt == 1 and bool(settings.forced_bos_token_id))
        yield _while(lambda tokens: len(tokens) == begin, settings.begin_suppress_tokens)


def _warpers(settings: Settings) -> Iterator[Callable[[Scores], Scores]]:
    if settings.temperature != 1.0:
        yield warpers.temperature(settings.temperature)
    if settings.top_h is not None:
        yield warpers.top_h(settings.top_h)
    if settings.top_k:
        yield warpers.top_k(settings.top_k)
    if settings.top_p < 1.0:
        yield warpers.top_p(settings.top_p)
    if settings.min_p is not None:
        yield warpers.min_p(settings.min_p)
    if settings.typical_p < 1.0:
        yield warpers.typical_p(settings.typical_p)
    if settings.epsilon_cutoff:
        yield warpers.epsilon_cutoff(settings.epsilon_cutoff)
    if settings.eta_cutoff:
        yield warpers.eta_cutoff(settings.eta_cutoff)


def _plain(change: Callable[[Scores], Scores]) -> LogitsProcessor:
    return lambda _tokens, scores: change(scores)


def _sequence_bias(biases: Sequence[tuple[Ids, float]]) -> LogitsProcessor:
    """Adds to a token's logit wherever the tokens so far are what stands before it in a sequence."""

    def process(tokens: Sequence[int], scores: Scores) -> Scores:
        made = scores.copy()
        for sequence, bias in biases:
            before = sequence[:-1]
            if len(before) <= len(tokens) and tuple(tokens[len(tokens) - len(before) :]) == before:
                made[_within(sequence[-1:], scores)] += np.float32(bias)
        return made

    return process


def _forced(place: int, tokens: Ids) -> LogitsProcessor:
    """Behind as many tokens as ``place`` only one of ``tokens`` may come."""

    def process(before: Sequence[int], scores: Scores) -> Scores:
        if len(before) != place:
            return scores
        made = np.full_like(scores, NEVER)
        made[_within(tokens, scores)] = 0
        return made

    return process


def _repetition_penalty(penalty: float) -> LogitsProcessor:
    """Makes every token that was there less likely: a positive logit is divided, a negative one multiplied."""

    def process(tokens: Sequence[int], scores: Scores) -> Scores:
        made = scores.copy()
        seen = _within(sorted(set(tokens)), scores)
        found = made[seen]
        made[seen] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))
        return made

    return process


def _no_repeat(size: int) -> LogitsProcessor:
    """No run of ``size`` tokens comes twice."""

    def process(tokens: Sequence[int], scores: Scores) -> Scores:
        if len(tokens) < size:
            return scores
        runs = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.int64), size)
        last = np.asarray(tokens[len(tokens) - size + 1 :], np.int64)
        made = scores.copy()
        made[_within(runs[(runs[:, :-1] == last).all(axis=1), -1], scores)] = NEVER
        return made

    return process


def _while(when: Callable[[Sequence[int]], bool], banned: Ids) -> LogitsProcessor:
    """Some tokens never come as long as ``when`` says so."""

    def process(tokens: Sequence[int], scores: Scores) -> Scores:
        if not when(tokens):
            return scores
        made = scores.copy()
        made[_within(banned, scores)] = NEVER
        return made

    return process


def _ending(start: int, factor: float, ends: Ids) -> LogitsProcessor:
    """From ``start`` tokens on the end becomes more likely with each."""

    def process(tokens: Sequence[int], scores: Scores) -> Scores:
        if len(tokens) <= start:
            return scores
        made = scores.copy()
        at = _within(ends, scores)
        found = made[at]
        gain = np.abs(found) * np.float32(factor ** (len(tokens) - start) - 1)
        made[at] = np.where(np.isfinite(found), found + gain, found)
        return made

    return process


def _finite(scores: Scores) -> Scores:
    made = np.where(np.isnan(scores), np.float32(0), scores)
    return np.clip(made, np.finfo(np.float32).min, np.finfo(np.float32).max)


def _within(tokens: Any, scores: Scores) -> npt.NDArray[np.int64]:
    """Those of ``tokens`` that have a logit."""
    found = np.asarray(tokens, np.int64).reshape(-1)
    return found[(found >= 0) & (found < len(scores))]
