"""Theorem 4.2 as a feature: short requests packed into maskless calls, each with its own result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.tiny_bundle import make_program, read_manifest, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.engines.request_codes import request_codes
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Limit, Pooling
from twoheads.graphs.variants.packing import longest_packable
from twoheads.runtime import LoadedBundle, Result, load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeCall
from twoheads.runtime.stages.attention import packed as packed_stage

pytestmark = pytest.mark.usefixtures("poisoned_stores")

TOLERANCE = 1e-4  # float32 against float64 through three layers; 5.2e-5 was seen, and a leak is above 1e-2

WIDE = Tiny(block_size=128, key_tile=128)
MODELS = {
    "bidirectional": replace(WIDE, masks=("full",), pooling=Pooling("mean", True)),
    "causal": WIDE,
    "windows": replace(WIDE, masks=("causal & window(40, 0)", "causal", "causal & chunk(64)")),
    "wide tiles": replace(WIDE, masks=("full", "causal"), key_tile=384, kv_heads=1),
    "limited": replace(WIDE, max_length=Limit(50, "a table")),
    "features": replace(WIDE, features=True, head=False),
}
ALONE = {
    "softcap": Tiny(softcap=4.0),
    "sinks": Tiny(sinks=True),
    "bias": Tiny(table_reach=6),
    "prefix": Tiny(masks=("causal | sinks(3)",)),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, LoadedBundle]]:
    root = tmp_path_factory.mktemp("bundles")
    models = MODELS | ALONE
    return {
        name: (tiny, load(write_tiny(root / str(at), tiny), threads=2))
        for at, (name, tiny) in enumerate(models.items())
    }


def requests(tiny: Tiny, count: int, total: int, seed: int) -> list[npt.NDArray[Any]]:
    """``count`` random inputs of random lengths, ``total`` tokens at most."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False) + 1)
    lengths = np.diff(np.concatenate([[0], cuts, [total]]))
    return [random_tokens(tiny, int(min(length, 40)), seed + at) for at, length in enumerate(lengths)]


def check(bundle: LoadedBundle, tiny: Tiny, inputs: list[npt.NDArray[Any]], output: str) -> list[Result]:
    """Runs ``inputs`` together and compares each result with the whole model on that input alone."""
    results = bundle.run(inputs, output=output)
    for tokens, result in zip(inputs, results, strict=True):
        want = reference(tiny, tokens)
        wanted = want["logits"][-1:] if output == "last" else want[output]
        assert result.array is not None
        assert result.array.dtype == np.float32
        assert result.output == output
        np.testing.assert_allclose(result.array, wanted, rtol=0, atol=TOLERANCE)
    return results


@pytest.mark.filterwarnings("error")
@pytest.mark.repeated
@settings(max_examples=cases(15, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(MODELS)), count=st.integers(2, 32), seed=st.integers(0, 99), data=st.data())
def test_each_request_in_one_maskless_call_gets_its_own_result(bundles, name, count, seed, data):
    tiny, bundle = bundles[name]
    outputs = ["hidden", *(["logits", "last"] if tiny.head else []), *(["embedding"] if tiny.pooling else [])]
    output = data.draw(st.sampled_from(outputs))
    results = check(bundle, tiny, requests(tiny, count, data.draw(st.integers(3 * count, 128)), seed), output)
    report = results[0].report
    assert all(result.report is report for result in results)
    assert report.requests == count
    assert report.blocks == 1
    assert report.engine_calls - report.repeated_calls == report.formula_calls
    attentions = [stage.calls for stage in report.stages if stage.kind == "attention"]
    assert attentions == [1] * tiny.layers, "one call for all requests"
    alone = bundle.run([random_tokens(tiny, 9)] * 2, output=output, pack="off")
    assert [result.report.requests for result in alone] == [1, 1]


@pytest.mark.parametrize("name", ["bidirectional", "causal"])
def test_equal_codes_would_garble(bundles, name, monkeypatch):
    tiny, bundle = bundles[name]
    inputs = requests(tiny, 4, 100, 5)
    check(bundle, tiny, inputs, "hidden")

    def equal(block_size):
        queries, keys = (codes.copy() for codes in request_codes(block_size))
        queries[1], keys[1] = queries[0], keys[0]
        return queries, keys

    monkeypatch.setattr(packed_stage, "request_codes", equal)
    with pytest.raises(AssertionError):
        check(bundle, tiny, inputs, "hidden")


@pytest.mark.parametrize("name", ["causal", "wide tiles"])
def test_many_requests_fill_blocks_and_every_call_is_counted(bundles, name, monkeypatch):
    tiny, bundle = bundles[name]
    made: list[object] = []
    original = OnnxRuntimeCall.run

    def run(call):
        made.append(call)
        original(call)

    monkeypatch.setattr(OnnxRuntimeCall, "run", run)
    rng = np.random.default_rng(3)
    inputs = [random_tokens(tiny, int(length), at) for at, length in enumerate(rng.integers(1, 65, 60))]
    results = check(bundle, tiny, inputs, "last")
    report = results[0].report
    assert report.engine_calls == report.formula_calls == len(made)
    assert -(-sum(map(len, inputs)) // 128) <= report.blocks <= 20
    assert {stage.calls for stage in report.stages if stage.kind == "attention"} == {report.blocks}
    assert [stage.calls for stage in report.stages if stage.name == "lm"] == [1], "60 rows of the head share a block"


def test_long_inputs_bring_the_short_ones_under_the_masks_of_one_run(bundles):
    tiny, bundle = bundles["causal"]
    inputs = [random_tokens(tiny, length, length) for length in (200, 10, 65, 20)]
    report = check(bundle, tiny, inputs, "logits")[0].report
    assert (report.requests, report.length, report.blocks) == (4, 295, 3), "the long one's last block is shared"
    assert [r.report.requests for r in check(bundle, tiny, inputs[:1], "logits")] == [1]


def test_positions_count_within_a_request(bundles):
    tiny, bundle = bundles["causal"]
    inputs = [random_tokens(tiny, length, length) for length in (12, 30, 7)]
    for output in ("logits", "hidden"):
        results = bundle.run(inputs, output=output, positions=[-1, 0, 6])
        assert results[0].report.requests == 3
        for tokens, result in zip(inputs, results, strict=True):
            np.testing.assert_allclose(
                result.array, reference(tiny, tokens)[output][[-1, 0, 6]], rtol=0, atol=TOLERANCE
            )
    with pytest.raises(InputError, match="outside"):
        bundle.run(inputs, output="logits", positions=[8])


def test_a_window_shorter_than_a_request_takes_masks(bundles):
    tiny, bundle = bundles["windows"]
    assert longest_packable(bundle.program) == 41
    results = check(bundle, tiny, [random_tokens(tiny, length) for length in (41, 42, 30, 20)], "hidden")
    assert [result.report.requests for result in results] == [4] * 4


@pytest.mark.parametrize("name", sorted(ALONE))
def test_models_that_codes_can_not_serve_take_masks(bundles, name):
    tiny, bundle = bundles[name]
    results = check(bundle, tiny, requests(tiny, 3, 20, 1), "hidden")
    assert [result.report.requests for result in results] == [3, 3, 3]


@pytest.fixture
def old(tmp_path: Path) -> LoadedBundle:
    """A bundle without packed engines."""
    write_tiny(tmp_path / "b", MODELS["causal"])
    manifest = read_manifest(tmp_path / "b")
    for name in [name for name in manifest["files"] if ".packed" in name]:
        del manifest["files"][name]
        (tmp_path / "b" / name).unlink()
    write_manifest(tmp_path / "b", manifest)
    return load(tmp_path / "b")


def test_bundles_without_packed_engines_take_masks(old):
    tiny = MODELS["causal"]
    results = check(old, tiny, requests(tiny, 3, 20, 1), "hidden")
    assert [result.report.requests for result in results] == [3, 3, 3]


@pytest.mark.parametrize("factor", [1e7, np.inf])
def test_scores_that_beat_the_codes_are_noticed(tmp_path, monkeypatch, factor):
    tiny = MODELS["causal"]
    bundle = load(write_tiny(tmp_path / "b", tiny))
    inputs = requests(tiny, 3, 20, 1)
    original = packed_stage._fill

    def huge(target, store, block, codes):
        original(target, store, block, codes)
        with np.errstate(invalid="ignore"):
            target[..., : target.shape[-1] - codes.shape[-1]] *= factor

    monkeypatch.setattr(packed_stage, "_fill", huge)
    results = check(bundle, tiny, inputs, "hidden")
    assert [result.report.requests for result in results] == [1, 1, 1], "not packed, and right"


def test_the_packed_engines_take_no_mask():
    program = make_program(MODELS["causal"])
    stage = next(stage for stage in program.body if isinstance(stage, AttentionStage))
    engine = program.engine(stage.engine)
    assert isinstance(engine, AttentionEngine)
    for variant in engine.PACKED_VARIANTS:
        inputs, outputs = engine.ports(variant)
        assert [port.name for port in inputs] == ["q", "k", "v"]
        assert [port.name for port in outputs] == ["out"]


def test_a_packed_run_warns_as_single_ones_do(tmp_path):
    tiny = replace(WIDE, trained_length=20, approximations=("window:9",))
    bundle = load(write_tiny(tmp_path / "b", tiny))
    with pytest.warns(UserWarning, match="20|window") as told:
        results = bundle.run([random_tokens(tiny, 5), random_tokens(tiny, 21)])
    assert len(told) == 2
    assert results[0].report.requests == 2
    assert results[0].report.warnings == tuple(str(warning.message) for warning in told)
    assert results[0].report.approximations == ("window:9",)
    assert {warning.filename for warning in told} == {__file__}, "told where the caller is"


def test_sampled_attention_has_nothing_to_sample_in_short_requests(tmp_path):
    tiny = replace(WIDE, masks=("causal", "full"), key_tile=256)
    average = Average(samples=1, window=None, sinks=0, seed=0)
    program = make_program(tiny)
    body = tuple(replace(s, average=average) if isinstance(s, AttentionStage) else s for s in program.body)
    bundle = load(write_tiny(tmp_path / "b", tiny, program=replace(program, body=body)))
    inputs = [random_tokens(tiny, length, length) for length in (50, 60, 40, 64, 3)]
    report = check(bundle, tiny, inputs, "hidden")[0].report
    assert (report.requests, report.blocks) == (5, 2)
    assert report.average is not None
    assert report.average.relative_error == 0.0


def test_pack_is_auto_or_off(bundles):
    with pytest.raises(InputError, match="'auto' or 'off'"):
        bundles["causal"][1].run([[1, 2], [3]], pack="on")
