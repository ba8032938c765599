"""Weights that do not fit into a limit are in memory for their stage only, and results do not change by a bit."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.runtime.open_engines import watch_open_engines
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.schedule.spill import plan_spill
from twoheads.runtime import Job, load
from twoheads.runtime.bundle.token_table import TokenTable
from twoheads.runtime.bundle.weights import Weights

TINY = Tiny(layers=8, width=64)
TOKENS = random_tokens(TINY, 150)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("stream") / "bundle", TINY)


def too_little(bundle, output="logits"):
    """Bytes that hold everything but the weights of all layers at once."""
    return load(bundle).schedule(len(TOKENS), output, by_blocks=True).peak_bytes - 1


def least(bundle, output="logits"):
    """Bytes that hold everything with the weights of one stage at a time."""
    loaded = load(bundle)
    schedule = loaded.schedule(len(TOKENS), output, by_blocks=True)
    ahead = plan_spill(schedule, limit=schedule.peak_bytes - 1, disk=False, workers=loaded.threads)
    assert ahead.memory is not None
    assert ahead.ahead
    plan = plan_spill(schedule, limit=ahead.memory.total - 1, disk=False, workers=loaded.threads)
    assert plan.memory is not None
    assert (plan.streamed, plan.ahead) == (True, False)
    assert plan.memory.total < ahead.memory.total
    return plan.memory.total


@pytest.fixture
def most_open(monkeypatch):
    return watch_open_engines(monkeypatch)


@pytest.mark.parametrize(("most", "stages"), [(too_little, 2), (least, 1)])
@pytest.mark.parametrize("output", ["logits", "last", "hidden"])
def test_streaming_changes_no_bit(bundle, most_open, output, most, stages):
    whole = load(bundle).run(TOKENS, output=output)
    assert most_open[0] > 8
    most_open[0] = 0
    loaded = load(bundle, memory_limit=most(bundle, output))
    plan = loaded.spill_plan(loaded.schedule(len(TOKENS), output))
    assert (plan.streamed, plan.ahead) == (True, stages == 2)
    for _ in range(2):  # a second run opens everything again
        streamed = loaded.run(TOKENS, output=output)
        np.testing.assert_array_equal(streamed.array, whole.array)
        assert streamed.report.engine_calls == whole.report.engine_calls
    assert most_open[0] <= len(loaded.program.head) + stages


def test_the_rows_of_tokens_are_fetched_before_they_are_read(bundle, monkeypatch):
    fetched, fetch = set(), TokenTable.fetch

    def seen(self, rows):
        fetched.update(rows.ravel().tolist())
        fetch(self, rows)

    monkeypatch.setattr(TokenTable, "fetch", seen)
    load(bundle).run(TOKENS)
    assert not fetched  # memory is not limited
    load(bundle, memory_limit=too_little(bundle)).run(TOKENS, output="logits")
    assert fetched | {0} == set(TOKENS.tolist()) | {0}  # which padding has


def test_what_fails_while_an_engine_is_opened_ahead_is_an_error_of_the_run(bundle, monkeypatch):
    loaded, view, threads = load(bundle, memory_limit=too_little(bundle)), Weights.view, set()

    def altered(self, name):
        if name.startswith("5."):
            threads.add(threading.current_thread().name)
            raise BundleError("weights.bin", "is altered", "compile again")
        return view(self, name)

    monkeypatch.setattr(Weights, "view", altered)
    for _ in range(2):
        with pytest.raises(BundleError, match="is altered"):
            loaded.run(TOKENS, output="logits")
    assert [name.partition("_")[0] for name in threads] == ["twoheads-weights"]


def test_a_job_goes_on_with_streamed_weights(bundle, tmp_path):
    expected = load(bundle).run(TOKENS, output="logits").array
    loaded = load(bundle, memory_limit=too_little(bundle))
    with Job(tmp_path / "job") as job:
        result = loaded.run_job(job, TOKENS, output="logits")
    np.testing.assert_array_equal(result.array, expected)


def test_values_are_spilled_only_where_streaming_is_not_enough(bundle):
    schedule = load(bundle).schedule(100_000, "hidden", by_blocks=True)
    all_weights = schedule.memory.weights
    streamed = plan_spill(schedule, limit=schedule.peak_bytes - 1, disk=True, workers=1)
    assert (streamed.streamed, streamed.values) == (True, frozenset())
    assert streamed.memory is not None
    assert streamed.memory.weights < all_weights
    alone = plan_spill(schedule, limit=streamed.memory.total - 1, disk=True, workers=1)
    assert alone.memory is not None
    assert (alone.ahead, alone.values) == (False, frozenset())
    less = plan_spill(schedule, limit=alone.memory.total - 1, disk=True, workers=1)
    assert less.streamed
    assert less.values
    with pytest.raises(InputError, match="--spill"):
        plan_spill(schedule, limit=alone.memory.total - 1, disk=False, workers=1)


def test_a_run_that_fits_keeps_its_engines_open(bundle, most_open):
    loaded = load(bundle, memory_limit=10**9)
    assert not loaded.spill_plan(loaded.schedule(len(TOKENS), "logits")).streamed
    loaded.run(TOKENS, output="logits")
    assert most_open[0] > 8
