"""Contexts that are appended to, stepped, guessed, forked, cut back, evicted, reloaded in any order, and fresh ones.

Every kind of context takes a hundred orders in the suite, those with more to compute fewer;
``pytest tests/runtime/generation/test_interleavings.py --hypothesis-profile=thousand`` takes a thousand of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.generation.decoders import BLOCK, bundle, tokens
from tests.tiers import with_long
from twoheads.runtime.generation.kept.prefix_cache import PrefixCache

KINDS = [("llama", None), ("gemma", None), ("mamba", None), ("qwen", None), ("llama", "int8"), ("gemma", "int8")]
SLOWER = {"qwen": 4, "mamba": 4, "int8": 2}
"""How many times fewer orders there are of these, but where a thousand are asked for."""

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3 * BLOCK)),
        st.tuples(st.just("step"), st.integers(1, BLOCK + 3)),
        st.tuples(st.just("guessed"), st.integers(1, BLOCK)),
        st.tuples(st.just("rollback"), st.integers(0, 100)),
        st.tuples(st.just("fork"), st.just(0)),
        st.tuples(st.just("evict"), st.integers(1, 4)),
        st.tuples(st.just("reload"), st.just(0)),
    ),
    min_size=1,
    max_size=8,
)


class _Sequence:
    """A context and what happens to it.

    Args:
        name: Of the bundle.
        pages: As of ``open_context``; rounded ones are not reloaded, and nothing is kept for others.
        cached: Blocks of beginnings that are kept in memory, and, if it is one, all of them in files.
        seed: Of its tokens.
        folder: For files.
    """

    def __init__(self, name: str, pages: str | None, cached: int, seed: int, folder: Path) -> None:
        self._bundle, self._pages, self._folder = bundle(name), pages, folder
        self._told: Iterator[int] = iter(tokens(1000, seed))
        self._cache: PrefixCache | None = None
        if pages is None:
            steps = self._bundle.generation.steps
            page = sum(entry.value.nbytes(BLOCK) for entry in steps.kept) + sum(port.nbytes for port in steps.states)
            self._cache = self._bundle.generation.keep_prefixes(cached * page, folder if cached == 1 else None)
        self.context = self._bundle.open_context(pages=pages)

    def append(self, count: int) -> None:
        self.context.append([next(self._told) for _ in range(count)])

    def step(self, count: int) -> None:
        for _ in range(count if len(self.context) else 0):
            self.context.step(next(self._told))

    def guessed(self, count: int) -> None:
        """Several at once, of which a third was wrong."""
        if len(self.context):
            self.context.steps([next(self._told) for _ in range(count)])
            self.context.rollback(len(self.context) - count // 3)

    def rollback(self, percent: int) -> None:
        self.context.rollback(len(self.context) * percent // 100)

    def fork(self, _: int) -> None:
        other, self.context = self.context, self.context.fork()
        if len(other):
            other.step(next(self._told))  # what the other one does is its own business
        other.close()

    def evict(self, blocks: int) -> None:
        """Another sequence takes the room of kept beginnings; then it begins again with what is left of its own."""
        sequence = list(self.context.tokens)
        if self._cache is None or not sequence:
            return
        with self._bundle.open_context() as other:
            other.append(tokens(blocks * BLOCK + 1, seed=7 + blocks))
        self.context.close()
        self.context = self._bundle.open_context()
        self.context.append(sequence)

    def reload(self, _: int) -> None:
        if self._pages is None:
            self._bundle.save_context(self.context, self._folder / "c")
            self.context = self._bundle.load_context(self._folder / "c")

    def close(self) -> None:
        self.context.close()
        self._bundle.generation.contexts.cache = None


@pytest.mark.parametrize(
    ("name", "pages"),
    with_long(KINDS, [kind for kind in KINDS if kind[0] != "qwen"]),
)
def test_any_interleaving_ends_as_a_fresh_run(name, pages):
    orders = settings().max_examples
    if orders < 1000:
        orders //= max(SLOWER.get(name, 1), SLOWER.get(pages or "", 1))

    @settings(max_examples=orders, deadline=None)
    @given(actions=ACTIONS, cached=st.integers(0, 4), seed=st.integers(0, 3))
    def check(actions, cached, seed):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            made = _Sequence(name, pages, cached, seed, folder)
            stack.callback(made.close)
            for action, count in actions:
                getattr(made, action)(count)
            logits = made.context.append([7])
            sequence = list(made.context.tokens)
        with bundle(name).open_context(pages=pages) as fresh:
            assert np.array_equal(fresh.append(sequence), logits)

    check()
