"""The clock around engine calls sees every call and changes nothing; the parts of a run's time add up."""

from __future__ import annotations

import time
from dataclasses import astuple

import numpy as np
import pytest

from tests.graphs.sample_programs import hybrid
from tests.runtime.device.simulated_backend import SimulatedBackend
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.runtime import load
from twoheads.runtime.backends.registry import open_backend
from twoheads.runtime.measurement.timed_backend import Breakdown, CallTime, TimedBackend, break_down, run_timed

TOKENS = np.arange(1, 71) % 40


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


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


def test_it_can_what_its_backend_can():
    """What a clock is put around is opened as ever: asked of the backend, not of its class."""
    inner = open_backend("onnxruntime")
    assert TimedBackend(inner).in_place
    assert TimedBackend(inner).shares_packed == inner.shares_packed
    assert not TimedBackend(SimulatedBackend()).in_place


def test_the_parts_are_the_whole_time_of_all_workers(folder):
    timed = TimedBackend(open_backend("onnxruntime"))
    bundle = load(folder, backend=timed, threads=2)
    bundle.run(TOKENS, "logits")
    run = run_timed(bundle, timed, TOKENS, "logits")
    assert min(run.breakdown.tokenwise, run.breakdown.attention, run.breakdown.head, run.breakdown.host) > 0
    assert sum(astuple(run.breakdown)) >= 2 * run.seconds * (1 - 1e-9)  # more only where a clock tick was rounded up
    assert run.report.engine_calls == run.report.formula_calls


def test_calls_are_sorted_by_what_their_engine_is():
    times = [CallTime(name, 1, seconds, 0.25) for name, seconds in (("first", 1), ("middle", 2), ("head", 4))]
    times += [CallTime("attention", 1, 8.0, 0.75), CallTime("conv", 1, 0.5, 0.25)]
    found = break_down(hybrid(), times, seconds=30.0, own=0.25)
    assert found == Breakdown(tokenwise=3.0, attention=8.0, scan=0.5, head=4.0, host=2.0, idle=12.5)


def test_what_a_worker_does_between_its_calls_is_the_hosts_time(folder):
    timed = TimedBackend(open_backend("onnxruntime"))
    load(folder, backend=timed, threads=1).run(TOKENS, "hidden")
    quiet = sum(entry.host_seconds for entry in timed.take())
    tensor = timed.tensor

    def busy(array):
        spin(0.001)
        return tensor(array)

    timed.tensor = busy
    load(folder, backend=timed, threads=1).run(TOKENS, "hidden")
    assert sum(entry.host_seconds for entry in timed.take()) > quiet + 0.05


def test_calls_in_the_callers_own_thread_count_as_those_of_workers(folder):
    timed = TimedBackend(open_backend("onnxruntime"))
    bundle = load(folder, backend=timed, threads=1)
    bundle.run(TOKENS[:5], "hidden")
    spin(1.0)  # what the caller did before the run is none of the run's time
    run = run_timed(bundle, timed, TOKENS[:5], "hidden")  # a single block
    assert 0 < run.breakdown.host < 1.0
