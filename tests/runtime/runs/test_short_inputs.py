"""Inputs of one block in one call, against the whole model in NumPy and against the runs by blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.runs.test_session import MODELS, assert_close
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.graphs.errors import BundleError
from twoheads.runtime import Job, LoadedBundle, load


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, LoadedBundle]:
    tiny = MODELS[request.param]
    folder = tmp_path_factory.mktemp("short") / "bundle"
    return tiny, load(write_tiny(folder, tiny, with_one_block=True), threads=2)


@pytest.mark.parametrize("length", [1, 2, 7, 15, 16])
def test_one_call_equals_the_whole_model(model: tuple[Tiny, LoadedBundle], length: int) -> None:
    tiny, bundle = model
    tokens = random_tokens(tiny, length, seed=length)
    want = reference(tiny, tokens)
    result = bundle.run(tokens, output="hidden")
    assert_close(result.array, want["hidden"])
    assert result.report.engine_calls == result.report.formula_calls == 1
    assert [stage.kind for stage in result.report.stages] == ["model"]
    if tiny.head:
        logits = bundle.run(tokens, output="logits")
        assert_close(logits.array, want["logits"])
        assert logits.report.engine_calls == logits.report.formula_calls == 3  # the head has two stages


def test_beyond_a_block_blocks_are_computed_as_ever(model: tuple[Tiny, LoadedBundle]) -> None:
    tiny, bundle = model
    tokens = random_tokens(tiny, 17)
    result = bundle.run(tokens, output="hidden")
    assert_close(result.array, reference(tiny, tokens)["hidden"])
    assert result.report.engine_calls == bundle.schedule(17, "hidden", by_blocks=True).engine_calls > 1


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle", Tiny(masks=("full", "causal")), with_one_block=True)
    tokens = random_tokens(Tiny(), 13)
    one, two = (load(folder, threads=threads).run(tokens, output="hidden").array for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_padding_is_not_computed_with(tmp_path: Path) -> None:
    tiny = Tiny(masks=("full",))
    bundle = load(write_tiny(tmp_path / "bundle", tiny, with_one_block=True))
    tokens = random_tokens(tiny, 9)
    padded = np.concatenate([[0, 0, 0], tokens])
    result = bundle.run(padded, output="hidden", attention_mask=[0] * 3 + [1] * 9)
    want = reference(tiny, tokens, np.arange(3, 12))["hidden"]
    assert result.array is not None
    assert_close(result.array[3:], want)
    assert result.report.engine_calls == 1


def test_jobs_files_and_limits_run_by_blocks(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle", Tiny(), with_one_block=True)
    tokens = random_tokens(Tiny(), 11)
    bundle, limited = load(folder), load(folder, memory_limit=10**9)
    spilling, by_blocks = load(folder, spill=tmp_path), load(folder, fused=False)
    with Job(tmp_path / "job") as job:
        reports = [bundle.run_job(job, tokens, output="hidden").report]
    reports += [other.run(tokens, output="hidden").report for other in (limited, spilling, by_blocks)]
    calls = bundle.schedule(11, "hidden", by_blocks=True).engine_calls
    assert [report.engine_calls for report in reports] == [calls] * 4
    assert limited.schedule(11, "hidden").engine_calls == calls == 2 * Tiny().layers + 1


def test_a_foreign_engine_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bundle", Tiny(), with_one_block=True)
    other = write_tiny(tmp_path / "other", Tiny(width=16), with_one_block=True)
    engine = "engines/one_block.onnx"
    (folder / engine).write_bytes((other / engine).read_bytes())
    with pytest.raises(BundleError, match=r"altered|truncated"):
        load(folder)
    with pytest.raises(BundleError, match="one_block"):
        load(folder, check="size").run(random_tokens(Tiny(), 5))
