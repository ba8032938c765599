"""Runs of hand-made bundles against the whole model in NumPy, and the promises of the executor."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.graphs.errors import BundleError
from twoheads.graphs.program.program import Pooling
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime import LoadedBundle, load

pytestmark = pytest.mark.usefixtures("poisoned_stores")

TOLERANCE = 5e-5  # float32 against float64 through three layers; a leak of padding or a wrong tile is above 1e-2

MODELS = {
    "causal": Tiny(),
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True)),
    "windows": Tiny(masks=("causal & window(20, 0)", "causal", "window(7, 9)")),
    "window sinks": Tiny(masks=("causal & (window(17, 0) | sinks(3))",), kv_heads=1),
    "chunks": Tiny(masks=("causal & chunk(24)", "chunk(10)")),
    "wide tiles": Tiny(key_tile=48, masks=("causal", "full", "window(5, 30)")),
    "learned sinks": Tiny(sinks=True, softcap=4.0),
    "learned sinks, wide tiles": Tiny(sinks=True, key_tile=32, masks=("window(11, 0)",)),
    "relative bias": Tiny(table_reach=6, masks=("full", "causal")),
    "slopes": Tiny(slope=True, masks=("causal", "full")),
    "both, wide": Tiny(slope=True, table_reach=30, sinks=True, key_tile=64, masks=("causal & window(40, 0)",)),
    "features": Tiny(features=True, head=False),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, LoadedBundle]]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        name: (tiny, load(write_tiny(root / str(at), tiny), threads=2))
        for at, (name, tiny) in enumerate(MODELS.items())
    }


def assert_close(got, want):
    assert got.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("error")
@pytest.mark.repeated
@settings(max_examples=cases(25, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(MODELS)), length=st.integers(1, 80), seed=st.integers(0, 3))
def test_any_length_equals_the_whole_model(bundles, name, length, seed):
    tiny, bundle = bundles[name]
    tokens = random_tokens(tiny, length, seed)
    want = reference(tiny, tokens)
    result = bundle.run(tokens, output="hidden")
    assert_close(result.array, want["hidden"])
    assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
    assert result.report.rounds == bundle.schedule(length, "hidden").rounds == 2 * tiny.layers + 1
    if tiny.head:
        assert_close(bundle.run(tokens, output="logits").array, want["logits"])


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("length", [1, 16, 17, 80])
def test_every_model_at_the_borders_of_blocks(bundles, name, length):
    tiny, bundle = bundles[name]
    tokens = random_tokens(tiny, length)
    assert_close(bundle.run(tokens, output="hidden").array, reference(tiny, tokens)["hidden"])


def test_last_positions_and_embedding(bundles):
    tiny, bundle = bundles["encoder"]
    tokens = random_tokens(tiny, 37)
    want = reference(tiny, tokens)
    assert bundle.run(tokens).output == "embedding"
    assert_close(bundle.run(tokens).array, want["embedding"])
    assert_close(bundle.run(tokens, output="last").array, want["logits"][-1:])
    rows = [36, 0, 5, 5, *range(30), -2]
    assert_close(bundle.run(tokens, output="logits", positions=rows).array, want["logits"][rows])
    assert_close(bundle.run(tokens, output="hidden", positions=rows).array, want["hidden"][rows])


@pytest.mark.parametrize(("mode", "normalize"), list(itertools.product(("mean", "cls", "last"), (False, True))))
def test_pooling(tmp_path, mode, normalize):
    tiny = Tiny(masks=("full",), pooling=Pooling(mode, normalize), layers=2)
    tokens = random_tokens(tiny, 21)
    assert_close(load(write_tiny(tmp_path / "b", tiny)).run(tokens).array, reference(tiny, tokens)["embedding"])


def test_only_the_head_blocks_that_are_needed_run(bundles):
    _, bundle = bundles["causal"]
    tokens = random_tokens(MODELS["causal"], 70)
    calls = {
        output: {stage.name: stage.calls for stage in bundle.run(tokens, output=output).report.stages}
        for output in ("hidden", "last", "logits")
    }
    assert "lm" not in calls["hidden"]
    assert calls["last"]["lm"] == 1
    assert calls["logits"]["lm"] == 5
    some = bundle.run(tokens, output="logits", positions=range(17)).report
    assert some.engine_calls == some.formula_calls
    assert some.rounds == bundle.schedule(70, "logits", 17).rounds == 9
    assert next(stage.calls for stage in some.stages if stage.name == "lm") == 2


@pytest.mark.parametrize("name", ["causal", "wide tiles", "learned sinks", "both, wide"])
def test_threads_do_not_change_a_bit(bundles, name):
    tiny, one = bundles[name]
    tokens = random_tokens(tiny, 79)
    results = [load(one.path, threads=threads, check="size").run(tokens, output="logits").array for threads in (1, 4)]
    np.testing.assert_array_equal(results[0], results[1])


def test_a_block_of_its_own_and_the_same_block_in_a_longer_input(bundles):
    tiny, bundle = bundles["causal"]
    tokens = random_tokens(tiny, 64)
    whole = bundle.run(tokens, output="hidden").array
    np.testing.assert_array_equal(bundle.run(tokens[:32], output="hidden").array, whole[:32])
    assert_close(bundle.run(tokens[:21], output="hidden").array, whole[:21].astype(np.float64))


def test_a_list_of_inputs_gives_a_list_of_results(bundles):
    tiny, bundle = bundles["causal"]
    inputs = [random_tokens(tiny, n) for n in (3, 50, 16)]
    results = bundle.run([inputs[0].tolist(), inputs[1][None], {"tokens": inputs[2]}], output="hidden")
    assert [len(np.asarray(result.array)) for result in results] == [3, 50, 16]
    assert all(result.report is results[0].report for result in results), "they share one run"
    assert (results[0].report.requests, results[0].report.length) == (3, 69)
    for tokens, result in zip(inputs, results, strict=True):
        assert_close(result.array, np.asarray(bundle.run(tokens, output="hidden").array, np.float64))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_integers_of_every_width(bundles, dtype):
    tiny, bundle = bundles["causal"]
    tokens = random_tokens(tiny, 20)
    np.testing.assert_array_equal(bundle.run(tokens.astype(dtype)).array, bundle.run(tokens).array)


def test_generated_inputs_may_be_given(bundles):
    tiny, bundle = bundles["causal"]
    tokens, positions = random_tokens(tiny, 20), np.arange(20)[::-1] * 3
    got = bundle.run({"tokens": tokens, "positions": positions}, output="hidden").array
    assert_close(got, reference(tiny, tokens, positions)["hidden"])


class Rows:
    def __init__(self):
        self.starts, self.parts = [], []

    def write(self, start_row, rows):
        self.starts.append(start_row)
        self.parts.append(rows.copy())


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("output", "positions"),
    [("logits", None), ("logits", [5, 70, 3, *range(40)]), ("hidden", None), ("hidden", [5, 70, 3]), ("last", None)],
)
def test_a_sink_gets_the_rows_in_order(bundles, threads, output, positions):
    tiny, bundle = bundles["causal"]
    loaded = load(bundle.path, threads=threads, check="size")
    tokens = random_tokens(tiny, 75)
    sink = Rows()
    result = loaded.run(tokens, output=output, positions=positions, sink=sink)
    assert result.array is None
    assert sink.starts == list(range(0, sum(map(len, sink.parts)), 16))
    got = np.concatenate(sink.parts)
    np.testing.assert_array_equal(got, loaded.run(tokens, output=output, positions=positions).array)


def test_the_report(bundles, tmp_path):
    tiny, bundle = bundles["causal"]
    report = bundle.run(random_tokens(tiny, 40), output="last").report
    assert (report.length, report.block_size, report.blocks, report.output) == (40, 16, 3, "last")
    assert report.threads == 2
    assert report.approximations == ()
    assert report.warnings == ()
    assert report.seconds > 0
    assert abs(sum(stage.seconds for stage in report.stages)) <= report.seconds
    assert report.peak_bytes > 20_000_000
    data = json.loads(json.dumps(to_json(report)))
    assert data["engine_calls"] == report.engine_calls
    assert data["stages"][1] | {"seconds": 0} == {"kind": "attention", "name": "attention0", "calls": 6, "seconds": 0}
    named = load(write_tiny(tmp_path / "b", Tiny(layers=1, approximations=("dropped tiles",))))
    assert named.run([3, 4]).report.approximations == ("dropped tiles",)


def test_beyond_the_trained_length_it_warns_and_runs(tmp_path):
    tiny = Tiny(trained_length=20, layers=2)
    bundle = load(write_tiny(tmp_path / "b", tiny))
    tokens = random_tokens(tiny, 21)
    with pytest.warns(UserWarning, match="21 tokens exceed the 20"):
        result = bundle.run(tokens, output="hidden")
    assert "trained" in result.report.warnings[0]
    assert_close(result.array, reference(tiny, tokens)["hidden"])
    assert bundle.run(tokens[:20]).report.warnings == ()


def test_rows_that_see_no_key(tmp_path):
    tiny = Tiny(masks=("sinks(4) & chunk(8)", "window(0, 0) & sinks(20)"), layers=2)
    tokens = random_tokens(tiny, 70)
    result = load(write_tiny(tmp_path / "b", tiny)).run(tokens, output="hidden")
    assert_close(result.array, reference(tiny, tokens)["hidden"])
    assert [stage.calls for stage in result.report.stages if stage.kind == "attention"] == [1, 2]


def test_a_variant_that_the_bundle_lacks_is_named(tmp_path):
    from tests.runtime.tiny_bundle import read_manifest, write_manifest

    path = write_tiny(tmp_path / "b", Tiny())
    manifest = read_manifest(path)
    del manifest["files"]["engines/attention.full.onnx"]
    write_manifest(path, manifest)
    (path / "engines" / "attention.full.onnx").unlink()
    bundle = load(path)
    bundle.run(random_tokens(Tiny(), 16))
    with pytest.raises(BundleError, match=r"attention\.full\.onnx: is needed"):
        bundle.run(random_tokens(Tiny(), 17))


def test_a_bundle_may_be_moved_and_given_as_text(tmp_path):
    path = write_tiny(tmp_path / "a", Tiny(layers=1))
    moved = path.rename(tmp_path / "b c")
    assert load(str(moved)).run([5, 6, 7], output="hidden").report.length == 3
    assert load(moved).path == Path(moved)
