"""Sampled attention: exact where everything is drawn, honest about its error, and the original under its own draws."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.end_to_end.random_models import Features, RandomTransformer
from tests.end_to_end.test_policy import EXAMPLES, llama
from tests.export.verification.test_verifier import edited_program
from tests.tiers import with_long
from tools.attention_only import AttentionOnly, features
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.export.cli import main
from twoheads.export.verification.report import APPROXIMATION
from twoheads.graphs.errors import BundleError, CompileError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.runtime import Report, load
from twoheads.runtime.stages.attention.sampled import SamplerWorker

pytestmark = pytest.mark.filterwarnings("ignore:approximate")
HEADS, KV_HEADS, DIM, BLOCK, LENGTH = 2, 1, 8, 16, 700


def gentle(seed: int = 0, length: int = LENGTH) -> np.ndarray:
    """Scores near 0 and values near each other: what Theorem 4.1 assumes."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((heads, length, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return features(0.3 * q, 0.3 * k, 0.3 * v + 1)


@pytest.fixture(scope="module", params=["causal", "full"])
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The same attention, exact, and sampled in whatever way."""
    folder = tmp_path_factory.mktemp("average")
    model = AttentionOnly(HEADS, KV_HEADS, DIM, request.param)
    compiled = compile_model(
        model, example_inputs=model.example(), block_size=BLOCK, key_tile=2 * BLOCK, attention="average:samples=1"
    )
    base = write_bundle(compiled, folder / "base", generation=False)

    def make(average: Average | None) -> Path:
        path = folder / str(average).replace(" ", "")
        if path.exists():
            return path

        def edit(program: Program) -> Program:
            stages = [
                dataclasses.replace(stage, average=average) if isinstance(stage, AttentionStage) else stage
                for stage in program.body
            ]
            return dataclasses.replace(program, body=tuple(stages))

        return edited_program(base, path, edit)

    return make


def run(bundle: Path, x: np.ndarray, threads: int = 2) -> tuple[np.ndarray, Report]:
    result = load(bundle, threads=threads).run(x)
    assert result.array is not None
    assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
    return result.array, result.report


def estimated(report: Report) -> float:
    assert report.average is not None
    assert report.average.relative_error is not None
    return report.average.relative_error


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))


def test_where_the_samples_cover_everything_it_is_full_attention(bundles) -> None:
    for length in (1, BLOCK, BLOCK + 1, 100):
        exact, _ = run(bundles(None), gentle(length=length))
        found, report = run(bundles(Average(4, None, 0, 0)), gentle(length=length))
        np.testing.assert_array_equal(found, exact)
        assert report.average is not None
        assert report.average.stages == ()
        assert report.average.relative_error == 0.0


def test_the_error_falls_with_the_root_of_the_samples_and_is_what_the_spread_says(bundles) -> None:
    exact, _ = run(bundles(None), gentle())
    errors: list[float] = []
    estimates: list[float] = []
    for samples in (2, 8):
        found = [run(bundles(Average(samples, None, 0, seed)), gentle()) for seed in range(3)]
        errors.append(float(np.mean([relative(array, exact) for array, _ in found])))
        estimates.append(float(np.mean([estimated(report) for _, report in found])))
    # From 2 to 8 of 22 tiles: the root of 4, a little more because a larger share of all is drawn.
    assert 1.7 < errors[0] / errors[1] < 3.2
    np.testing.assert_allclose(estimates, errors, rtol=0.3)


def test_the_mean_over_many_draws_is_the_exact_result(bundles) -> None:
    exact, _ = run(bundles(None), gentle())
    arrays = [run(bundles(Average(1, None, 0, seed)), gentle())[0] for seed in range(12)]
    single, mean = relative(arrays[0], exact), relative(np.mean(arrays, 0), exact)
    assert mean < 2 * single / np.sqrt(12)


def test_it_is_the_same_for_any_number_of_threads(bundles) -> None:
    first, one = run(bundles(Average(2, 40, 3, 9)), gentle(), threads=1)
    second, three = run(bundles(Average(2, 40, 3, 9)), gentle(), threads=3)
    np.testing.assert_array_equal(first, second)
    assert one.average == three.average
    other, _ = run(bundles(Average(2, 40, 3, 10)), gentle())
    assert np.abs(first - other).max() > 1e-4


def test_the_report_says_whether_the_theorem_covers_the_input(bundles) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((heads, LENGTH, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS))
    _, calm = run(bundles(Average(2, None, 0, 0)), features(0.01 * q, 0.01 * k, 0.01 * v + 1))
    _, wild = run(bundles(Average(2, None, 0, 0)), features(3 * q, 3 * k, v))
    assert calm.average is not None
    assert wild.average is not None
    calm_stage, wild_stage = calm.average.stages[0], wild.average.stages[0]
    assert 1.0 <= calm_stage.c < 1.01
    assert 0.9 < calm_stage.d <= 1.0
    # 128 (log d + log 40 + log N) / (eps^2 D^2) for D = 1, d = 8, N = the 672 or so remaining keys, eps = 1/2
    least = 128 * np.log(40 * DIM * calm_stage.remaining_keys) / 0.25
    assert least <= calm_stage.required_keys < 1.3 * least
    assert not calm_stage.holds  # 64 drawn keys are not 6,000
    assert wild_stage.c > 1e6
    assert wild_stage.required_keys > 1e20
    assert not wild.average.assumptions_hold
    assert estimated(wild) > 10 * estimated(calm)


def test_with_enough_drawn_keys_the_assumptions_hold(tmp_path: Path) -> None:
    length, rng = 16384, np.random.default_rng(4)
    model = AttentionOnly(1, 1, 4, "full")
    options: dict[str, Any] = {"example_inputs": model.example(), "block_size": 1024, "key_tile": 4096}
    compiled = compile_model(model, attention="average:samples=2", **options)
    q, k = (0.01 * rng.standard_normal((1, length, 4)) for _ in range(2))
    x = features(q, k, np.ones((1, length, 4)))
    _, report = run(write_bundle(compiled, tmp_path / "b", generation=False), x)
    assert report.average is not None
    assert report.average.assumptions_hold, report.average
    assert estimated(report) < 1e-5  # all values are equal


def test_a_single_sample_has_no_spread(bundles) -> None:
    _, report = run(bundles(Average(1, None, 0, 0)), gentle())
    assert report.average is not None
    assert report.average.relative_error is None
    assert report.average.stages[0].worst_error is None


MODELS = {
    "llama": (llama, "average:samples=1+window:20+sinks:2+seed:3"),
    "windows beside full, learned sinks, softcap": (
        lambda: RandomTransformer(
            Features(masks=("causal & window(9, 0)", "causal", "full"), layers=3, sinks=True, softcap=5.0, kv_heads=2)
        ),
        "average:samples=2",
    ),
}


@pytest.mark.parametrize("name", with_long(MODELS, [name for name in MODELS if name != "llama"]))
def test_verify_compares_with_the_original_under_the_same_draws(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    make, policy = MODELS[name]
    model = make()
    options: dict[str, Any] = {} if hasattr(model, "config") else {"example_inputs": EXAMPLES}
    bundle = write_bundle(
        compile_model(model, block_size=16, attention=policy, **options), tmp_path / "b", generation=False
    )
    report = verify(bundle, model, length=150, **options)
    assert report.passed, report
    assert report.approximations == (policy,)
    assert report.check("hidden", APPROXIMATION).max_abs_error > 100 * report.check().max_abs_error


def test_verify_fails_where_the_scale_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(
        compile_model(llama(), block_size=16, attention="average:samples=1"), tmp_path / "b", generation=False
    )
    assert verify(bundle, llama(), length=100).passed
    united = SamplerWorker._united
    monkeypatch.setattr(SamplerWorker, "_united", lambda worker, scale: united(worker, scale + 0.001))
    assert not verify(bundle, llama(), length=100).passed


def test_windows_stay_and_biases_are_refused() -> None:
    windows = Features(masks=("causal & window(9, 0)",))
    assert (
        compile_model(
            RandomTransformer(windows), example_inputs=EXAMPLES, block_size=16, attention="average:samples=1"
        ).approximations
        == ()
    )
    with pytest.raises(CompileError, match="adds a bias by distance"):
        compile_model(
            RandomTransformer(Features(bias="alibi", positions="none")),
            example_inputs=EXAMPLES, block_size=16, attention="average:samples=1",
        )  # fmt: skip


def test_a_program_that_samples_where_it_can_not_is_refused(bundles, tmp_path: Path) -> None:
    def edit(program: Program) -> Program:
        stages = [
            dataclasses.replace(stage, mask=parse_mask("causal & window(9, 0)"))
            if isinstance(stage, AttentionStage)
            else stage
            for stage in program.body
        ]
        return dataclasses.replace(program, body=tuple(stages))

    with pytest.raises(BundleError, match="keys can be sampled in full or causal attention"):
        load(edited_program(bundles(Average(1, None, 0, 0)), tmp_path / "b", edit))
    with pytest.raises(BundleError, match="out of range"):
        load(bundles(Average(0, None, 0, 0)))


def test_the_commands_show_the_estimate(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, tokens, policy = tmp_path / "b", tmp_path / "t.npy", "average:samples=2+sinks:4"
    np.save(tokens, np.arange(200) % 16)

    def told(*words: object) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    told("compile", tiny_llama, "-o", bundle, "--block-size", 16, "--attention", policy)
    assert policy in told("inspect", bundle)[0]
    assert "average(samples=2, sinks=4, seed=0)" in told("inspect", bundle, "--program")[0]
    out, err = told("run", bundle, "--tokens", tokens, "-o", tmp_path / "o.npz", "--report", tmp_path / "r.json")
    assert "warning: approximate" in err
    assert "estimated error" in out
    assert "Theorem 4.1" in out
    average = json.loads((tmp_path / "r.json").read_text())["average"]
    assert len(average["stages"]) == 2
    assert average["assumptions_hold"] is False
    assert 0 < average["relative_error"] < 1
    planned = json.loads(told("plan", bundle, "--length", 400, "--json")[0])
    assert planned["engine_calls"] == planned["formula_calls"]
    assert "Theorem 4.1" in told("plan", bundle, "--length", 400)[0]
