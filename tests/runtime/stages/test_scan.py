"""Scans run on the host: any length, in jobs, with values in files, with weights streamed; never shared by inputs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.axes_models import BLOCK, WIDTH, Model
from tests.runtime.scan_models import SCANS, ScanModel
from tests.runtime.stages.test_axes import check
from tests.runtime.stopped_jobs import StoppedError, again, run_stopped, stage_begun, stop_after
from twoheads.export.bundle.writer import file_entry
from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.schedule.theorems import SCAN, stage_claims
from twoheads.runtime import Job, load
from twoheads.runtime.execution import checkpoints as checkpoint
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.stages import scan

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 53, 200)
HYBRID = ("gated_delta_rule", "attention", "causal_conv", "gated_delta_rule", "selective_scan")


def features(length: int) -> Any:
    return np.random.default_rng(length).standard_normal((length, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    model, path = ScanModel(HYBRID), tmp_path_factory.mktemp("hybrid") / "bundle"
    model.load(path)
    return model, path


@pytest.mark.parametrize("name", SCANS)
def test_every_operator_alone(tmp_path: Path, name: str) -> None:
    model = ScanModel((name, name))
    bundle = model.load(tmp_path / "b", threads=2)
    for length in LENGTHS:
        check(model, bundle, "hidden", features=features(length))


@pytest.mark.parametrize("key_tile", [BLOCK, 2 * BLOCK])
def test_a_hybrid(tmp_path: Path, key_tile: int) -> None:
    """Values that scans read may lie in tiles wider than a block."""
    model = ScanModel(HYBRID, key_tile)
    bundle = model.load(tmp_path / "b", threads=2)
    result = None
    for length in LENGTHS:
        result = check(model, bundle, "hidden", features=features(length))
    assert result is not None
    blocks = 200 // BLOCK
    assert result.report.rounds == 4 * blocks + len(bundle.program.body) - 4
    scans = {report.calls for report in result.report.stages if report.kind == "scan"}
    assert scans == {blocks}
    claims = stage_claims(bundle.schedule(200, "hidden"))
    assert sum(claim.theorem == SCAN for claim in claims) == 4


def test_block_by_block_through_all_layers_in_constant_memory(tmp_path: Path) -> None:
    model = ScanModel(("gated_delta_rule", "window", "causal_conv", "selective_scan", "gated_delta_rule"))
    bundle = model.load_lowered(tmp_path / "b", "model")
    for length in LENGTHS:
        check(model, bundle, "hidden", features=features(length))
    short, long = (bundle.schedule(length, "hidden") for length in (100 * BLOCK, 200 * BLOCK))
    assert [plan.kind for plan in long.stages] == ["model"]
    assert long.engine_calls == long.rounds == 200
    # What is stored for every token is what goes in and what comes out.
    assert long.memory.values - short.memory.values == 100 * BLOCK * 2 * 4 * WIDTH
    (claim,) = stage_claims(long)
    assert (claim.theorem, claim.paper) == (f"Theorem 5.1, {SCAN}", None)


def test_scans_alone_are_one_call_a_block_too(tmp_path: Path) -> None:
    model = ScanModel(("decayed_attention", "diagonal_scan"))
    bundle = model.load_lowered(tmp_path / "b", "model")
    for length in LENGTHS:
        check(model, bundle, "hidden", features=features(length))
    first, again = (bundle.run({"features": features(30)}, output="hidden").array for _ in range(2))
    np.testing.assert_array_equal(first, again, "a run begins with the state of the one before")


@pytest.mark.parametrize("names", [HYBRID, ("decayed_attention", "diagonal_scan")])
def test_an_input_of_one_block_is_one_call(tmp_path: Path, names: tuple[str, ...]) -> None:
    """With attention between the scans and without; the models' norms make NaN of padding."""
    model = ScanModel(names)
    bundle = model.load_lowered(tmp_path / "b", "tile", short=True)
    for length in LENGTHS:
        check(model, bundle, "hidden", features=features(length))
        report = bundle.run({"features": features(length)}, output="hidden").report
        assert report.engine_calls == report.formula_calls
        assert (report.engine_calls == 1) == (length <= BLOCK)
        assert (report.rounds == 1) == (length <= BLOCK)


def test_threads_make_no_difference_but_rounding(hybrid: tuple[Model, Path]) -> None:
    _, path = hybrid
    runs = [load(path, threads=threads).run(features(100), output="hidden").array for threads in (1, 3)]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)


def test_stages_go_on_with_the_state_of_the_checkpoint(
    tmp_path: Path, hybrid: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    bundle, tokens = load(hybrid[1], threads=2), features(60)
    expected = bundle.run(tokens, output="hidden")
    within, done = run_stopped(bundle, tmp_path / "job", tokens)
    assert within >= {stage.name for stage in bundle.program.scans}, "no process began within every scan"
    np.testing.assert_array_equal(done.array, expected.array)
    assert done.report.engine_calls == expected.report.engine_calls
    assert done.report.rounds == expected.report.rounds


def test_a_checkpoint_without_its_state_begins_the_stage_anew(
    tmp_path: Path, hybrid: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    bundle, tokens = load(hybrid[1], threads=2), features(60)
    expected = bundle.run(tokens, output="hidden")
    monkeypatch.setattr(scan._Chain, "save", lambda chain: "no state")
    while stage_begun(tmp_path / "job") != "scan0":
        with again(tmp_path / "job") as job, contextlib.suppress(StoppedError):
            stop_after(job, 2)
            bundle.run_job(job, tokens, output="hidden")
    monkeypatch.undo()
    with Job(tmp_path / "job", resume=True) as job:
        done = bundle.run_job(job, tokens, output="hidden")
    np.testing.assert_array_equal(done.array, expected.array)
    assert done.report.engine_calls == expected.report.engine_calls


def test_values_in_files_and_streamed_weights(tmp_path: Path, hybrid: tuple[Model, Path]) -> None:
    tokens = features(1000)
    expected = load(hybrid[1], threads=2).run(tokens, output="hidden").array
    spilled = load(hybrid[1], threads=2, spill=tmp_path)
    result = spilled.run(tokens, output="hidden")
    np.testing.assert_array_equal(result.array, expected)


def test_several_inputs_never_share_a_state(hybrid: tuple[Model, Path]) -> None:
    model, path = hybrid
    bundle: Any = load(path, threads=2)
    inputs = [features(length) for length in (3, 2, 1, 20)]
    results = bundle.run([{"features": each} for each in inputs], output="hidden")
    for each, result in zip(inputs, results, strict=True):
        assert result.report.requests == 1
        np.testing.assert_allclose(result.array, model.expected({"features": each})["hidden"], atol=1e-4)


def test_documents_in_one_sequence_have_states_of_their_own(hybrid: tuple[Model, Path]) -> None:
    model, path = hybrid
    whole = features(30)
    bundle: Any = load(path, threads=2)
    result = bundle.run({"features": whole}, output="hidden", documents=[11, 19])
    parts = [model.expected({"features": part})["hidden"] for part in (whole[:11], whole[11:])]
    np.testing.assert_allclose(result.array, np.concatenate(parts), atol=1e-4)


def test_holes_in_a_mask_are_refused(hybrid: tuple[Model, Path]) -> None:
    bundle: Any = load(hybrid[1], threads=1)
    mask = np.ones(30, np.int64)
    mask[:4] = 0
    padded = bundle.run({"features": features(30)}, output="hidden", attention_mask=mask)
    alone = bundle.run({"features": features(30)[4:]}, output="hidden")
    np.testing.assert_allclose(padded.array[4:], alone.array, atol=1e-5)
    mask[10] = 0
    with pytest.raises(InputError, match="the state of scan0 changes with every token"):
        bundle.run({"features": features(30)}, output="hidden", attention_mask=mask)


def test_a_part_of_the_blocks_is_no_run(hybrid: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunState, "only", property(lambda run: frozenset({1}), lambda run, value: None), raising=False)
    with pytest.raises(InternalError, match="all blocks of one input"):
        load(hybrid[1], threads=1).run(features(30), output="hidden")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"chunk":8', '"chunk":3', "chunks of 3"),
        ('"operator":"causal_conv"', '"operator":"rotation"', "is not a scan operator"),
        ('["kernel",4]', '["kernel",5]', "weight '2.weight' is"),
        ('["key_dim",3]', '["key_dim",4]', "port q takes"),
        ('"engine":"scan.causal_conv"', '"engine":"scan.selective_scan"', "values for"),
        ('"engine":"scan.causal_conv"', '"engine":"attention"', "missing or of another kind"),
    ],
)
def test_programs_that_do_not_fit_are_refused(
    tmp_path: Path, hybrid: tuple[Model, Path], old: str, new: str, message: str
) -> None:
    path = tmp_path / "b"
    shutil.copytree(hybrid[1], path)
    text = json.dumps(json.loads((path / "program.json").read_text()), separators=(",", ":"))
    assert old in text
    (path / "program.json").write_text(text.replace(old, new))
    manifest = json.loads((path / "manifest.json").read_text())
    entry = file_entry(path / "program.json")
    manifest["files"]["program.json"] |= {"size": entry.size, "sha256": entry.sha256}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        load(path)
