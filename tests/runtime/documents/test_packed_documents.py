"""Lists of inputs of any lengths in common runs, kept apart by masks: each result is that of the input alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Limit, Pooling
from twoheads.graphs.schedule import spill
from twoheads.runtime import LoadedBundle, Result, load
from twoheads.runtime.runs import groups as run_groups

pytestmark = pytest.mark.usefixtures("poisoned_stores")

TOLERANCE = 5e-5  # as for single runs: float32 against float64 through three layers

MODELS = {
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True)),
    "decoder": Tiny(kv_heads=1, key_tile=48),
    "windows": Tiny(masks=("causal & window(20, 0)", "causal & (window(5, 0) | sinks(3))"), key_tile=32),
    "chunks": Tiny(masks=("causal & chunk(24)", "causal | sinks(3)")),
    "bias": Tiny(masks=("full",), table_reach=6, slope=True),
    "sinks": Tiny(sinks=True, softcap=4.0),
    "limited": Tiny(max_length=Limit(50, "a table")),
    "features": Tiny(features=True, head=False),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, LoadedBundle]]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: (tiny, load(write_tiny(root / name, tiny), threads=2)) for name, tiny in MODELS.items()}


def check(bundle: LoadedBundle, tiny: Tiny, inputs: list[npt.NDArray[Any]], output: str) -> list[Result]:
    """Runs ``inputs`` together and compares each result with the whole model on that input alone."""
    results = bundle.run(inputs, output=output)
    for tokens, result in zip(inputs, results, strict=True):
        want = reference(tiny, tokens)
        wanted = want["logits"][-1:] if output == "last" else want[output]
        assert result.array is not None
        np.testing.assert_allclose(result.array, wanted, rtol=0, atol=TOLERANCE)
    return results


@pytest.mark.repeated
@settings(max_examples=cases(15, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(MODELS)), lengths=st.lists(st.integers(1, 50), min_size=1, max_size=7), data=st.data()
)
def test_each_document_gets_its_own_result(bundles, name, lengths, data):
    tiny, bundle = bundles[name]
    outputs = ["hidden", *(["logits", "last"] if tiny.head else []), *(["embedding"] if tiny.pooling else [])]
    lengths = [*lengths, 1, 16, 17]  # one token, a block, a block and one
    inputs = [random_tokens(tiny, length, at) for at, length in enumerate(lengths)]
    report = check(bundle, tiny, inputs, data.draw(st.sampled_from(outputs)))[0].report
    assert report.requests == len(lengths)
    assert report.length == sum(lengths)
    assert report.engine_calls - report.repeated_calls == report.formula_calls


def test_documents_that_saw_each_other_would_show(bundles, monkeypatch):
    tiny, bundle = bundles["decoder"]
    inputs = [random_tokens(tiny, length, length) for length in (20, 9)]
    check(bundle, tiny, inputs, "hidden")
    monkeypatch.setattr("twoheads.graphs.schedule.packed.Documents", lambda inner, starts, lengths: inner)
    with pytest.raises(AssertionError):
        check(bundle, tiny, inputs, "hidden")


def test_the_numbers_of_threads_and_runs_change_no_bit(bundles):
    tiny, bundle = bundles["encoder"]
    inputs = [random_tokens(tiny, length, length) for length in (70, 3, 40, 16, 1, 33)]
    runs = [bundle.run(inputs), load(bundle.path, threads=1).run(inputs)]
    for one, other in pairwise(runs):
        assert all((a.array == b.array).all() for a, b in zip(one, other, strict=True))


def test_a_group_has_so_many_tokens(bundles, monkeypatch):
    tiny, bundle = bundles["encoder"]
    monkeypatch.setattr(run_groups, "MOST_BLOCKS", 4)
    inputs = [random_tokens(tiny, length, length) for length in (30, 30, 5, 70, 20, 44)]
    results = check(bundle, tiny, inputs, "embedding")
    assert [result.report.requests for result in results] == [2, 2, 1, 1, 2, 2], "neighbours of 64 tokens together"
    monkeypatch.setattr(run_groups, "MOST_ROW_BYTES", 50 * tiny.width * 4)
    assert [r.report.requests for r in check(bundle, tiny, inputs, "hidden")] == [1, 2, 2, 1, 1, 1]


def test_a_document_beyond_the_model_is_refused_as_it_is_alone(bundles):
    tiny, bundle = bundles["limited"]
    with pytest.raises(InputError, match="51 tokens exceed"):
        bundle.run([random_tokens(tiny, length) for length in (20, 51, 9)])


def test_groups_that_do_not_fit_the_memory_are_halved(bundles):
    tiny, bundle = bundles["encoder"]
    inputs = [random_tokens(tiny, length, length) for length in (40, 41, 42, 43)]
    alone = bundle.schedule(43, "hidden").memory
    limit = alone.total + alone.values  # of two documents, not of four
    small = load(bundle.path, memory_limit=limit)
    results = check(small, tiny, inputs, "hidden")
    assert [result.report.requests for result in results] == [2, 2, 2, 2]
    tight = load(bundle.path, memory_limit=alone.total)
    assert [r.report.requests for r in check(tight, tiny, inputs, "hidden")] == [1, 1, 1, 1]


def test_positions_count_within_a_document(bundles):
    tiny, bundle = bundles["windows"]
    inputs = [random_tokens(tiny, length, length) for length in (12, 60, 7)]
    results = bundle.run(inputs, output="logits", positions=[-1, 0, 6])
    assert results[0].report.requests == 3
    for tokens, result in zip(inputs, results, strict=True):
        np.testing.assert_allclose(result.array, reference(tiny, tokens)["logits"][[-1, 0, 6]], rtol=0, atol=TOLERANCE)


def test_spilled_values_change_no_bit(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "WINDOW_BYTES", 0)
    tiny, bundle = bundles["encoder"]
    inputs = [random_tokens(tiny, length, length) for length in (300, 3, 400)]
    spilled = load(bundle.path, spill=tmp_path).run(inputs)
    for one, other in zip(bundle.run(inputs), spilled, strict=True):
        assert one.report.requests == other.report.requests == 3
        assert other.report.spilled_bytes > 0
        np.testing.assert_array_equal(one.array, other.array)
