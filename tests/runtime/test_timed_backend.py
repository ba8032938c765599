"""The clock around engine calls sees every call and changes nothing; the parts of a run's time add up."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.runtime import load
from twoheads.runtime.backend import open_backend
from twoheads.runtime.timed_backend import CallTime, TimedBackend, break_down, run_timed

TOKENS = np.arange(1, 71) % 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("timed") / "bundle", Tiny())


def test_every_call_is_timed_and_the_result_is_the_same(folder):
    timed = TimedBackend(open_backend("onnxruntime"))
    bundle = load(folder, backend=timed, threads=2)
    result = bundle.run(TOKENS, "logits")
    times = timed.take()
    assert sum(entry.calls for entry in times) == result.report.engine_calls
    assert {entry.engine for entry in times} == {"first", "mid", "last", "attention", "norm", "lm"}
    assert all(entry.seconds > 0 for entry in times)
    assert timed.take() == []
    np.testing.assert_array_equal(result.array, load(folder, threads=2).run(TOKENS, "logits").array)


def test_the_parts_are_the_whole_time_of_all_workers(folder):
    timed = TimedBackend(open_backend("onnxruntime"))
    bundle = load(folder, backend=timed, threads=2)
    bundle.run(TOKENS, "logits")
    run = run_timed(bundle, timed, TOKENS, "logits")
    assert min(run.breakdown.tokenwise, run.breakdown.attention, run.breakdown.head, run.breakdown.host) > 0
    assert sum(astuple(run.breakdown)) >= 2 * run.seconds * (1 - 1e-9)  # more only where a clock tick was rounded up
    assert run.report.engine_calls == run.report.formula_calls


def test_calls_are_sorted_by_what_their_engine_is():
    times = [CallTime(name, 1, seconds, seconds / 2) for name, seconds in (("first", 1), ("mid", 2), ("lm", 4))]
    times.append(CallTime("attention", 1, 8.0, 8.0))
    found = break_down(make_program(Tiny()), times, seconds=30.0, cpu_seconds=13.5)
    # 11.5 of the 13.5 seconds of processor time were spent inside calls; 15 seconds of wall time were.
    assert astuple(found) == (3.0, 8.0, 4.0, 2.0, 13.0)
