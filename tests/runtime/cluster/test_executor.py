"""Runs on workers, without Ray: the bits of a local run, whatever is lost when; and no array passes the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.axes_models import BLOCK, WIDTH, classifier, convolution, counted_positions, encoder_decoder, image
from tests.runtime.cluster.in_process import InProcess
from tests.runtime.open_engines import watch_open_engines
from tests.runtime.runs.test_first_fault import poke
from tests.runtime.scan_models import ScanModel
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from tests.tiers import cases
from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.graphs.prediction.worker_holdings import worker_holdings
from twoheads.graphs.program.program import Pooling
from twoheads.graphs.schedule.placement import place
from twoheads.graphs.schedule.spill import plan_spill
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.cluster.executor import ClusterExecutor, check_clustered, most_held
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.runs.execute import execute
from twoheads.runtime.runs.groups import Group

TINY = {
    "causal": Tiny(),
    "windows": Tiny(masks=("causal & window(20, 0)", "causal", "window(7, 9)")),
    "wide tiles": Tiny(key_tile=48, masks=("causal", "full", "window(5, 30)"), sinks=True),
    "bias": Tiny(slope=True, table_reach=30, key_tile=32, masks=("causal & window(40, 0)",)),
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True), layers=2),
    "features": Tiny(features=True, head=False, layers=2),
}
SHAPES = {
    "pooled": lambda: classifier("max"),
    "strided": convolution,
    "cross": encoder_decoder,
    "counted": counted_positions,
    "image": image,
    "scans": lambda: ScanModel(("gated_delta_rule", "attention", "causal_conv", "selective_scan")),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedBundle]:
    root = tmp_path_factory.mktemp("bundles")
    tiny = {name: load(write_tiny(root / name, one), threads=2) for name, one in TINY.items()}
    return tiny | {name: make().load(root / name, threads=2) for name, make in SHAPES.items()}


def inputs_of(name: str, length: int) -> Any:
    rng = np.random.default_rng(length)

    def features(rows: int) -> Any:
        return rng.standard_normal((rows, WIDTH)).astype(np.float32)

    match name:
        case "pooled" | "strided" | "scans":
            return {"features": features(length)}
        case "cross":
            return {"source": features(1 + length // 3), "target": features(length)}
        case "counted":
            return {"ids": rng.integers(0, 4, length)}
        case "image":
            return {"pixels": rng.standard_normal((1, 6, 6)).astype(np.float32)}
        case _:
            return random_tokens(TINY[name], length)


def run(
    bundle: LoadedBundle,
    workers: InProcess,
    tokens: Any,
    output: str,
    positions: Any = None,
    sink: Any = None,
    threads: int = 2,
):
    inputs = read_inputs(bundle.program, tokens, output=output, positions=positions)
    (request,) = inputs.requests
    executor = ClusterExecutor(workers, set(range(workers.count)), threads)
    (result,) = execute(bundle, executor, Group((request,), output), sink=sink)
    assert result.report.cluster is not None
    rows = None if request.rows is None or output != "logits" else len(request.rows)
    schedule = bundle.schedule(request.lengths, output, rows, by_blocks=True)
    return schedule, result.array, result.report, result.report.cluster


@pytest.mark.repeated
@settings(max_examples=cases(10, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted([*TINY, *SHAPES])),
    length=st.integers(1, 90),
    workers=st.integers(1, 4),
    losses=st.dictionaries(st.integers(1, 60), st.integers(0, 3), max_size=3),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_the_bits_of_a_local_run_whatever_is_lost(bundles, name, length, workers, losses, seed, data):
    bundle, tokens = bundles[name], inputs_of(name, length)
    output = data.draw(st.sampled_from(bundle.program.outputs))
    losses = {after: lost for after, lost in losses.items() if lost < workers - 1}  # the last one stays
    cluster = InProcess(bundle.path, workers, losses, seed)
    schedule, array, report, told = run(bundle, cluster, tokens, output)
    expected = bundle.run(tokens, output=output)
    assert array is not None
    assert array.dtype == expected.array.dtype
    np.testing.assert_array_equal(array, expected.array)
    assert report.rounds == schedule.rounds
    lost = workers - len(cluster.alive)
    assert told.lost_workers <= lost  # one that has nothing more to do is not missed
    if not lost:
        assert report.engine_calls - report.repeated_calls == report.formula_calls
        assert report.repeated_calls == expected.report.repeated_calls
        assert told.recomputed_calls == 0
        assert {stage.name: stage.calls for stage in report.stages} == {
            stage.name: stage.calls for stage in expected.report.stages
        }


@pytest.mark.parametrize("after", [2, 6, 11, 16])
def test_who_computes_the_scans_may_be_lost(bundles, after):
    bundle, tokens = bundles["scans"], inputs_of("scans", 75)
    cluster = InProcess(bundle.path, 3, {after: 0})
    _, array, report, told = run(bundle, cluster, tokens, "hidden")
    np.testing.assert_array_equal(array, bundle.run(tokens, output="hidden").array)
    assert told.lost_workers == 1
    assert report.engine_calls >= report.formula_calls


def test_calls_that_are_repeated_are_told_as_such(bundles):
    """At this length one tile's scores lie too far from their anchor."""
    tokens = inputs_of("causal", 83)
    expected = bundles["causal"].run(tokens, output="hidden").report
    _, _, report, told = run(bundles["causal"], InProcess(bundles["causal"].path, 2), tokens, "hidden")
    assert report.repeated_calls == expected.repeated_calls > 0
    assert report.engine_calls - report.repeated_calls == report.formula_calls
    assert told.recomputed_calls == 0


@pytest.mark.parametrize("losses", [{}, {11: 1, 23: 0}])
def test_weights_that_do_not_fit_are_in_a_worker_for_their_stage_only(tmp_path, monkeypatch, losses):
    tiny = Tiny(layers=6, width=64)
    path, tokens = write_tiny(tmp_path / "bundle", tiny), random_tokens(tiny, 90)
    expected = load(path, threads=2).run(tokens, output="logits").array
    opened = watch_open_engines(monkeypatch)
    schedule = load(path, threads=2).schedule(len(tokens), "logits", by_blocks=True)
    held = most_held(schedule, 3)
    whole = schedule.memory.total - schedule.memory.values + held
    streamed = plan_spill(schedule, limit=whole - 1, disk=False, workers=2, held=held)
    assert streamed.memory is not None
    assert (streamed.streamed, streamed.memory.values) == (True, held)
    alone = plan_spill(schedule, limit=streamed.memory.total - 1, disk=False, workers=2, held=held).memory
    assert alone is not None
    for limit, stages in ((whole, 8), (whole - 1, 2), (streamed.memory.total - 1, 1)):
        opened[0] = 0
        bundle = load(path, threads=2, memory_limit=limit)
        _, array, report, told = run(bundle, InProcess(path, 3, losses, limited=True), tokens, "logits")
        np.testing.assert_array_equal(array, expected)
        assert told.lost_workers == len(losses)
        assert report.engine_calls - report.repeated_calls == report.formula_calls + told.recomputed_calls
        assert opened[0] <= len(bundle.program.head) + stages
        assert opened[0] > 1 or stages < 2
    with pytest.raises(InputError, match="nothing can be spilled"):
        run(load(path, threads=2, memory_limit=alone.total - 1), InProcess(path, 3, limited=True), tokens, "logits")


@pytest.mark.parametrize("name", ["causal", "windows", "wide tiles", "cross", "pooled", "scans"])
def test_it_reads_what_the_placement_says(bundles, name):
    bundle, tokens = bundles[name], inputs_of(name, 83)
    for output in bundle.program.outputs:
        schedule, _, _, told = run(bundle, InProcess(bundle.path, 3), tokens, output, threads=1)
        placement = place(schedule, 3)
        placed = placement.moved_bytes
        # What was copied for its safety may be read from the copy; only what moves rows leaves blocks at one worker.
        assert told.read_bytes == placed or (name in ("pooled", "scans") and told.read_bytes < placed)
        copied = sum(int(size.sum()) for size in worker_holdings(placement).copied.values())
        assert told.copied_bytes == copied or (name in ("pooled", "scans") and told.copied_bytes < copied)


def test_values_are_let_go(bundles):
    bundle = bundles["causal"]
    alone, two = InProcess(bundle.path, 1), InProcess(bundle.path, 2)
    for cluster in (alone, two):
        run(bundle, cluster, inputs_of("causal", 64), "hidden")
        assert not cluster.arrays
    # At once alive: 2 inputs, 4 values of a layer (4 blocks each), what it was made of (2), its attention's output.
    assert alone.most_arrays <= 4 * (2 + 4 + 2 + 1)
    assert two.most_arrays <= 4 * (2 + 4 + 2 * 2 + 2 * 2)


@pytest.mark.repeated
def test_a_loss_costs_a_layer_and_not_the_run(bundles):
    bundle = bundles["causal"]
    undisturbed = InProcess(bundle.path, 3)
    schedule, _, _, _ = run(bundle, undisturbed, inputs_of("causal", 90), "hidden")
    for after in range(3, len(undisturbed.ended) - 3, cases(4, 2)):
        _, _, _, told = run(bundle, InProcess(bundle.path, 3, {after: 1}), inputs_of("causal", 90), "hidden")
        assert told.lost_workers == 1
        assert 0 <= told.recomputed_calls <= schedule.engine_calls / bundle.schedule(90).rounds * 3


def test_picked_rows_and_a_sink(bundles):
    bundle, tokens = bundles["causal"], inputs_of("causal", 70)
    picked = np.array([69, 3, 3, 40, *range(60), 0])

    class Sink:
        def __init__(self) -> None:
            self.rows: list[np.ndarray] = []

        def write(self, start_row: int, rows: np.ndarray) -> None:
            assert start_row == sum(map(len, self.rows))
            self.rows.append(rows.copy())

    for output in ("logits", "hidden"):
        sink, cluster = Sink(), InProcess(bundle.path, 2, {12: 0})
        _, array, _, _ = run(bundle, cluster, tokens, output, picked, sink)
        assert array is None
        expected = bundle.run(tokens, output=output, positions=picked).array
        np.testing.assert_array_equal(np.concatenate(sink.rows), expected)


def test_losing_all_workers_ends_the_run(bundles):
    cluster = InProcess(bundles["causal"].path, 2, {3: 0, 5: 1})
    with pytest.raises(TwoheadsError, match="all workers are lost"):
        run(bundles["causal"], cluster, inputs_of("causal", 50), "hidden")


def test_what_has_no_rows_is_refused(tmp_path: Path):
    from tests.runtime.stages.test_axes import lower

    bundle = convolution(BLOCK).load(tmp_path / "b", lower=lambda program: lower("stock", program))
    with pytest.raises(InputError, match="stage layer: StockEngine does not run on a cluster"):
        check_clustered(bundle.program)


def test_a_result_that_is_not_finite_names_its_stage(tmp_path: Path) -> None:
    """The driver runs it once more, as workers keep no values."""
    bundle = poke(tmp_path, Tiny(), "1.v", 0)
    _, _, report, _ = run(bundle, InProcess(bundle.path, 2), np.array([3, 4, 5] * 12), "hidden")
    assert "that begins in stage mid1, in its value 'v1' at token 0" in report.warnings[0]
