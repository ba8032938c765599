"""The protocol of executors: host, simulated device and a cluster in this process carry out the same requests."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.axes_models import WIDTH, classifier, encoder_decoder
from tests.runtime.cluster.in_process import InProcess
from tests.runtime.device.simulated_backend import SimulatedBackend
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from tests.tiers import cases
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.program import Pooling
from twoheads.runtime import LoadedBundle, Report, load
from twoheads.runtime.cluster.executor import ClusterExecutor
from twoheads.runtime.execution.executor import Executor, RunPlan
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.runs.execute import run_inputs

pytestmark = pytest.mark.usefixtures("poisoned_stores")

TINY = {
    "causal": Tiny(layers=2),
    "windows": Tiny(layers=2, masks=("causal & window(20, 0)", "full"), key_tile=32, sinks=True),
    "first": Tiny(layers=1, masks=("full",), pooling=Pooling("cls", True)),
    "last": Tiny(layers=1, pooling=Pooling("last", False)),
    "mean": Tiny(layers=1, masks=("full",), pooling=Pooling("mean", True), table_reach=5),
    "features": Tiny(layers=1, features=True, head=False),
}
SHAPES = {"pooled": lambda: classifier("max"), "cross": encoder_decoder}
TOLERANCE = 2e-5  # a device merges tiles in another order than the host; a wrong row is off by more than 1e-2


class Rows:
    """A sink that keeps its rows."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def write(self, start_row: int, rows: Any) -> None:
        assert start_row == sum(map(len, self.rows))
        self.rows.append(rows.copy())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LoadedBundle, LoadedBundle]]:
    """Each bundle on the host and on a device."""
    root = tmp_path_factory.mktemp("executors")
    for name, tiny in TINY.items():
        write_tiny(root / name, tiny)
    for name, make in SHAPES.items():
        make().load(root / name)
    names = [*TINY, *SHAPES]
    return {
        name: (load(root / name, threads=2, fused=False), load(root / name, backend=SimulatedBackend()))
        for name in names
    }


def inputs_of(name: str, length: int) -> Any:
    rng = np.random.default_rng(length)

    def features(rows: int) -> Any:
        return rng.standard_normal((rows, WIDTH)).astype(np.float32)

    if name == "pooled":
        return {"features": features(length)}
    if name == "cross":
        return {"source": features(1 + length // 3), "target": features(length)}
    return random_tokens(TINY[name], length)


def counts(report: Report) -> Any:
    """What must not depend on who carries out a run."""
    calls = {stage.name: stage.calls for stage in report.stages}
    return report.engine_calls, report.formula_calls, report.rounds, report.length, report.blocks, calls


@pytest.mark.repeated
@settings(max_examples=cases(8, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*TINY, *SHAPES]), lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3), data=st.data()
)
def test_the_same_requests_give_the_same_results(bundles, name, lengths, data):
    host, device = bundles[name]
    output = data.draw(st.sampled_from(host.program.outputs))
    by_row = host.program.row_value(output) is not None
    positions = data.draw(st.none() | st.lists(st.integers(0, min(lengths) - 1), min_size=1)) if by_row else None
    streamed = by_row and len(lengths) == 1 and data.draw(st.booleans())
    tokens = [inputs_of(name, length) for length in lengths]
    one_or_all = tokens if len(tokens) > 1 else tokens[0]
    inputs = read_inputs(host.program, one_or_all, output=output, positions=positions)
    workers = InProcess(host.path, 2)
    found: dict[str, Any] = {}
    for where, bundle, executor in (
        ("host", host, host.executor),
        ("device", device, device.executor),
        ("cluster", host, ClusterExecutor(workers, {0, 1}, 2)),
    ):
        sink = Rows() if streamed else None
        results = run_inputs(bundle, executor, inputs, share=False, sink=sink)
        arrays = [result.array for result in results] if sink is None else [np.concatenate(sink.rows)]
        found[where] = arrays, [counts(result.report) for result in results]
    for array, on_device, on_cluster in zip(*(found[where][0] for where in ("host", "device", "cluster")), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, on_cluster)
        assert on_device.shape == array.shape
        np.testing.assert_allclose(on_device, array, rtol=0, atol=TOLERANCE)
    assert found["host"][1] == found["device"][1] == found["cluster"][1]


def executors(host: LoadedBundle, device: LoadedBundle) -> list[Executor]:
    return [host.executor, device.executor, ClusterExecutor(InProcess(host.path, 1), {0}, 1)]


def test_only_the_host_runs_variants(bundles):
    assert [executor.variants for executor in executors(*bundles["causal"])] == [True, False, False]


def test_an_executor_refuses_what_it_can_not_do(bundles, tmp_path):
    host, device = bundles["causal"]
    with Job(tmp_path / "job") as job, pytest.raises(InputError, match="not on a device"):
        device.run_job(job, [1, 2, 3])
    assert not (tmp_path / "job" / "job.json").exists(), "nothing of it is left"
    plan = RunPlan(host.schedule(20), spilled=frozenset({"hidden"}))
    with pytest.raises(InternalError, match="without files"):
        ClusterExecutor(InProcess(host.path, 1), {0}, 1).start(plan, None).__enter__()


def test_the_body_is_computed_before_rows_are_taken(bundles):
    """Each step does its own part: engines open first, and rows can be taken again and again."""
    host, device = bundles["causal"]
    request = read_inputs(host.program, inputs_of("causal", 40)).requests[0]
    wanted = host.run(inputs_of("causal", 40), positions=[39, 0]).array
    for executor in executors(host, device):
        schedule = replace(host.schedule(40, "logits", 2), lengths=dict(request.lengths))
        with executor.start(RunPlan(schedule), None) as run:
            assert run.calls == 0
            run.prepare()
            assert run.calls == 0
            run.body(request.arrays)
            body = run.calls
            for times in (1, 2):
                rows = run.rows(np.array([39, 0]), None)
                assert rows is not None
                np.testing.assert_allclose(rows, wanted, rtol=0, atol=TOLERANCE)
                assert run.calls == body + times * len(host.program.head)


@contextmanager
def wrong_rows(executor: Any):
    """Takes the row before each that is asked for."""
    original = executor.start

    @contextmanager
    def start(plan: Any, tick: Any):
        with original(plan, tick) as run:
            taken = run.rows
            run.rows = lambda positions, sink: taken(positions if positions is None else positions - 1, sink)
            yield run

    executor.start = start
    try:
        yield
    finally:
        del executor.start


def test_a_wrong_row_would_be_seen(bundles):
    host, device = bundles["causal"]
    tokens = inputs_of("causal", 30)
    expected = host.run(tokens, output="last").array
    for bundle in (host, device):
        with wrong_rows(bundle.executor):
            assert np.abs(bundle.run(tokens, output="last").array - expected).max() > 1e-2
