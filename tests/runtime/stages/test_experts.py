"""Mixtures of experts, gathered by expert: the library's results, the calls that the choices ask for, no more bytes."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.mixtures import BLOCK, CHOSEN, CLASSES, EXPERTS, library_logits, mixture, mixture_bundle
from tests.runtime.stopped_jobs import StoppedError, stop_after
from twoheads.compiler import compile_model
from twoheads.export import verify, write_bundle
from twoheads.export.bundle.writer import file_entry
from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.program.program import ExpertsEngine
from twoheads.graphs.schedule.theorems import EXPERTS as GATHERED
from twoheads.graphs.schedule.theorems import stage_claims
from twoheads.runtime import Job, LoadedBundle, load
from twoheads.runtime.cluster.executor import check_clustered
from twoheads.runtime.execution import mixture as calls_of_experts
from twoheads.runtime.execution.mixture import Chosen, chosen_experts
from twoheads.runtime.execution.run_state import RunState

LAYERS = 2
BOUND = 1e-5
"""Of errors, as a share of the largest logit."""


def ids(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(3, CLASSES, length)


def opened(name: str = "olmoe", **options: Any) -> LoadedBundle:
    given: dict[str, Any] = {"threads": 2, **options}
    return load(mixture_bundle(name), **given)


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK + 1, 150])
def test_results_are_the_library_s(name: str, length: int) -> None:
    tokens = ids(length)
    want = library_logits(name, tokens)
    result = opened(name).run(tokens, output="logits")
    assert result.array is not None
    assert np.abs(result.array - want).max() < BOUND * np.abs(want).max()


def test_grouped_and_dense_agree() -> None:
    tokens = ids(150)
    dense = load(mixture_bundle("olmoe", "dense"), threads=2)
    assert not dense.program.mixtures
    grouped, all_of_them = (bundle.run(tokens, output="logits").array for bundle in (opened(), dense))
    assert np.abs(grouped - all_of_them).max() < BOUND * np.abs(all_of_them).max()


@pytest.mark.parametrize("length", [1, 3, 70])
def test_calls_are_those_that_tokens_ask_for_and_no_more_than_planned(length: int) -> None:
    bundle = opened()
    report, plan = bundle.run(ids(length), output="hidden").report, bundle.schedule(length, "hidden")
    assert plan.bounded
    assert report.engine_calls == report.formula_calls <= plan.engine_calls == plan.formula_calls
    made = [stage.calls for stage in report.stages if stage.kind == "experts"]
    claims = [claim for claim in stage_claims(plan) if claim.theorem == GATHERED]
    assert all(claim.floor.calls <= calls <= claim.formula.calls for claim, calls in zip(claims, made, strict=True))
    assert report.rounds == plan.rounds == len(plan.stages)


def test_one_token_reads_the_experts_that_it_chose() -> None:
    bundle = opened()
    (engine,) = (engine for engine in bundle.program.engines if isinstance(engine, ExpertsEngine))
    report = bundle.run(ids(1), output="hidden").report
    assert report.all_expert_bytes == LAYERS * EXPERTS * engine.expert_bytes
    assert report.expert_bytes == LAYERS * CHOSEN * engine.expert_bytes


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, int]]:
    """Which parts of weights are asked for."""
    from twoheads.runtime.bundle.weights import Weights

    seen: set[tuple[str, int]] = set()
    part = Weights.part

    def noted(self: Weights, name: str, number: int) -> Any:
        seen.add((name, number))
        return part(self, name, number)

    monkeypatch.setattr(Weights, "part", noted)
    return seen


def test_an_expert_that_nobody_chose_may_be_damaged(tmp_path: Path, read: set[tuple[str, int]]) -> None:
    """Its bytes are not looked at, not even for their hash; those of one that is needed are."""
    path = tmp_path / "bundle"
    shutil.copytree(mixture_bundle("olmoe"), path)
    bundle, tokens = load(path, threads=1), ids(2, seed=3)
    want = bundle.run(tokens, output="hidden").array
    name = bundle.program.mixtures[0].weights[0]
    needed = {number for part, number in read if part == name}
    entry = load(path).manifest.weights[name]
    size = 4 * int(np.prod(entry.shape[1:]))

    def damage(expert: int) -> None:
        with (path / "engines" / "weights.bin").open("r+b") as file:
            file.seek(entry.offset + expert * size)
            file.write(b"\xff" * size)

    for expert in set(range(EXPERTS)) - needed:
        damage(expert)
    np.testing.assert_array_equal(load(path, threads=1).run(tokens, output="hidden").array, want)
    damage(min(needed))
    with pytest.raises(BundleError, match=rf"its weight .*\[{min(needed)}\] has another sha256"):
        load(path, threads=1).run(tokens, output="hidden")


def test_threads_change_no_bit() -> None:
    runs = [opened(threads=threads).run(ids(100), output="logits").array for threads in (1, 2)]
    np.testing.assert_array_equal(*runs)


def test_streamed_weights_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from twoheads.runtime.bundle.weights import Weights

    tokens, gone = ids(150), set[int]()
    let_go = Weights.let_go_part

    def noted(self: Weights, names: Any, number: int) -> None:
        gone.add(number)
        let_go(self, names, number)

    monkeypatch.setattr(Weights, "let_go_part", noted)
    whole = opened().run(tokens, output="logits")
    assert not gone
    limit = opened().schedule(len(tokens), "logits", by_blocks=True).peak_bytes - 1
    bundle = opened(memory_limit=limit)
    assert bundle.spill_plan(bundle.schedule(len(tokens), "logits")).streamed
    streamed = bundle.run(tokens, output="logits")
    np.testing.assert_array_equal(streamed.array, whole.array)
    assert len(gone) == EXPERTS
    assert streamed.report.expert_bytes == whole.report.expert_bytes


def test_values_in_files_change_no_bit(tmp_path: Path) -> None:
    tokens = ids(700)
    expected = opened().run(tokens, output="hidden").array
    np.testing.assert_array_equal(opened(spill=tmp_path).run(tokens, output="hidden").array, expected)


def test_a_job_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    bundle, tokens = opened(), ids(70)
    expected, processes, done = bundle.run(tokens, output="hidden"), 0, None
    while done is None:
        processes += 1
        with (
            Job(tmp_path / "job", resume=(tmp_path / "job" / "job.json").exists()) as job,
            contextlib.suppress(StoppedError),
        ):
            stop_after(job, 1)
            done = bundle.run_job(job, tokens, output="hidden")
    assert processes >= len(bundle.program.body), "not every stage was the last one of a process"
    np.testing.assert_array_equal(done.array, expected.array)
    assert done.report.engine_calls == done.report.formula_calls == expected.report.engine_calls


def test_inputs_that_share_blocks_gather_their_tokens_together() -> None:
    inputs = [ids(length, seed=length) for length in (3, 5, 2, 40)]
    bundle: Any = opened()
    for result, tokens in zip(bundle.run(inputs, output="logits"), inputs, strict=True):
        want = library_logits("olmoe", tokens)
        assert np.abs(result.array - want).max() < BOUND * np.abs(want).max()
        assert result.report.requests == len(inputs) if len(tokens) < BLOCK else True
        assert result.report.engine_calls == result.report.formula_calls


def test_a_token_that_names_an_expert_twice_is_refused() -> None:
    index, real = np.array([[1, 2], [3, 3]]), np.ones(2, np.bool_)
    assert [one.expert for one in chosen_experts("mix", index, np.array([True, False]), 4)] == [1, 2]
    with pytest.raises(InputError, match="token 1 names expert 3 twice"):
        chosen_experts("mix", index, real, 4)
    assert [one.expert for one in chosen_experts("mix", index[:1] - 2, real[:1], 4)] == [0]


def test_a_part_of_the_blocks_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunState, "only", property(lambda run: frozenset({0}), lambda run, value: None), raising=False)
    with pytest.raises(InternalError, match="lie in all blocks"):
        opened(threads=1).run(ids(9), output="hidden")


def test_a_cluster_refuses_by_name() -> None:
    with pytest.raises(InputError, match="gathers the tokens of all blocks by expert"):
        check_clustered(opened().program)


def test_verify_catches_two_experts_that_were_swapped(tmp_path: Path) -> None:
    mixture("olmoe").save_pretrained(tmp_path / "model")
    assert verify(mixture_bundle("olmoe"), tmp_path / "model", length=70).passed
    compiled = compile_model(mixture("olmoe"), block_size=BLOCK, experts="grouped")
    name = compiled.program.mixtures[0].weights[0]
    swapped = compiled.weights[name].detach().clone()[[1, 0, *range(2, EXPERTS)]]
    wrong = replace(compiled, weights={**compiled.weights, name: swapped})
    path = write_bundle(wrong, tmp_path / "wrong", generation=False)
    assert not verify(path, tmp_path / "model", length=70).passed


def test_a_row_that_is_added_up_in_the_wrong_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of results can fail: one expert's rows are gathered from the tokens behind them."""
    made: Any = vars(calls_of_experts)["row_calls"]
    monkeypatch.setattr(
        calls_of_experts, "row_calls", lambda sizes, rows: made(sizes, rows)[:1] if rows > 20 else made(sizes, rows)
    )
    want = library_logits("olmoe", ids(150))
    got = opened().run(ids(150), output="logits").array
    assert np.abs(got - want).max() > BOUND * np.abs(want).max()
    assert len(list(Chosen(0, np.arange(21), np.zeros(21, np.int64)).calls((1, 8, 16)))) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"experts":8', '"experts":4', "is float32[8, 48, 32], expected float32[4, 48, 32]"),
        ('"chosen":2', '"chosen":3', "its engine takes int64 rows of 3"),
        ('"gate":"silu"', '"gate":"tanh"', "which no version knows"),
        ('"width":32', '"width":33', "its engine takes float32 rows of 33"),
        ('"engine":"experts_0"', '"engine":"attention_0"', "missing or of another kind"),
    ],
)
def test_programs_that_do_not_fit_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "b"
    shutil.copytree(mixture_bundle("olmoe"), path)
    text = json.dumps(json.loads((path / "program.json").read_text()), separators=(",", ":"))
    assert old in text
    (path / "program.json").write_text(text.replace(old, new))
    _listed(path, "program.json")
    with pytest.raises(BundleError, match=re.escape(message)):
        load(path)


def _listed(path: Path, name: str) -> None:
    """Writes the file's new hash into the manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    entry = file_entry(path / name)
    manifest["files"][name] |= {"size": entry.size, "sha256": entry.sha256}
    (path / "manifest.json").write_text(json.dumps(manifest))
