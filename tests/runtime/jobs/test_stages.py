"""Checkpoints within long stages of every kind: whatever is stopped after any of its items goes on to the same bits."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.stopped_jobs import StoppedError, again, run_stopped, stage_begun, stop_after
from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.compiler.lowering.stock import lower_stock
from twoheads.compiler.lowering.tile import Lowered
from twoheads.graphs.errors import TwoheadsError
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.runtime import Job, NpzWriter, load
from twoheads.runtime.execution import checkpoints as checkpoint
from twoheads.runtime.jobs.job import RESULT

LENGTH = 150
MASKS = ("causal & (window(20, 0) | sinks(2))", "causal & window(4, 0)", "full")


def stock(program: Program) -> Program:
    return lower_stock(Lowered(program, {})).program


def average(program: Program) -> Program:
    """Two drawn tiles beside a window in every attention."""
    policy = Average(samples=2, window=16, sinks=0, seed=3)
    stages = [
        dataclasses.replace(stage, average=policy) if isinstance(stage, AttentionStage) else stage
        for stage in program.body
    ]
    return dataclasses.replace(program, body=tuple(stages))


LOWERINGS = {
    "stock": (Tiny(masks=MASKS, sinks=True), stock),
    "stock with masks": (Tiny(layers=2, slope=True), stock),
    "average": (Tiny(layers=2), average),
}


@pytest.fixture(autouse=True)
def checkpoints_at_once(monkeypatch):
    """After every item."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.parametrize("name", LOWERINGS)
def test_stages_go_on(tmp_path: Path, name: str) -> None:
    tiny, lower = LOWERINGS[name]
    bundle = load(write_tiny(tmp_path / "bundle", tiny, program=lower(make_program(tiny))), threads=2)
    tokens = random_tokens(tiny, LENGTH)
    expected = bundle.run(tokens, output="hidden")
    within, done = run_stopped(bundle, tmp_path / "job", tokens)
    stages = {stage.name for stage in bundle.program.body if isinstance(stage, AttentionStage)}
    assert within >= stages, "no process began within every attention stage"
    np.testing.assert_array_equal(done.array, expected.array)
    assert done.report.engine_calls == expected.report.engine_calls
    assert done.report.repeated_calls == expected.report.repeated_calls
    assert done.report.average == expected.report.average


class ToFile:
    """A run of logits into a ``.npz`` in a job."""

    def __init__(self, folder: Path) -> None:
        self.tiny = Tiny(layers=1)
        self.bundle = load(write_tiny(folder / "bundle", self.tiny), threads=2)
        self.tokens = random_tokens(self.tiny, LENGTH)
        self.out, self.partial, self.folder = folder / "out.npz", folder / ".kept", folder / "job"

    def run(self, *, stop: int | None = None, positions: Any = None) -> Any:
        with again(self.folder) as job:
            if stop is not None:
                stop_after(job, stop)
            with NpzWriter(self.out, keep=self.partial.name) as file:
                sink = file.array("logits", (LENGTH, self.tiny.vocabulary))
                return self.bundle.run_job(job, self.tokens, output="logits", sink=sink, positions=positions)

    def stop_in_head(self) -> None:
        """Stops with a checkpoint within the head."""
        while stage_begun(self.folder) != "lm":
            with pytest.raises(StoppedError):
                self.run(stop=2)


@pytest.mark.parametrize("picked", [False, True])
def test_logits_go_on_behind_the_rows_that_are_written(tmp_path: Path, picked: bool) -> None:
    run = ToFile(tmp_path)
    positions = np.random.default_rng(0).permutation(LENGTH) if picked else None
    expected = run.bundle.run(run.tokens, output="logits", positions=positions)
    stops, kept, done = 0, [], None
    while done is None:
        try:
            done = run.run(stop=1 + stops % 3, positions=positions)
        except StoppedError:
            kept.append(run.partial.stat().st_size)
        stops += 1
    assert kept == sorted(kept)
    assert len(set(kept)) > 2, "the file did not grow from process to process"
    np.testing.assert_array_equal(np.load(run.out)["logits"], expected.array)
    assert done.report.engine_calls == expected.report.engine_calls
    assert not run.partial.exists()


def test_a_damaged_part_of_the_output_is_refused_and_a_missing_one_written_again(tmp_path: Path) -> None:
    run = ToFile(tmp_path)
    run.stop_in_head()
    good = run.partial.read_bytes()
    rows = good.index(b"descr") + 150
    run.partial.write_bytes(good[:rows] + bytes([good[rows] ^ 1]) + good[rows + 1 :])
    with pytest.raises(TwoheadsError, match=r"kept: does not hold what the checkpoint says\n  fix: delete this file"):
        run.run()
    run.partial.write_bytes(good[:rows])
    with pytest.raises(TwoheadsError, match="kept: is shorter than the checkpoint says"):
        run.run()
    run.partial.unlink()
    report = run.run().report
    assert report.engine_calls == report.formula_calls, "calls whose rows were lost are counted"
    expected = run.bundle.run(run.tokens, output="logits").array
    np.testing.assert_array_equal(np.load(run.out)["logits"], expected)


def test_what_follows_the_verified_rows_is_written_again(tmp_path: Path) -> None:
    run = ToFile(tmp_path)
    run.stop_in_head()
    with run.partial.open("ab") as file:
        file.write(os.urandom(1_000_000))
    run.run()
    expected = run.bundle.run(run.tokens, output="logits").array
    np.testing.assert_array_equal(np.load(run.out)["logits"], expected)
    assert run.out.stat().st_size < 100_000


def test_logits_in_memory_go_on_too(tmp_path: Path) -> None:
    tiny, folder = Tiny(layers=1), tmp_path / "job"
    bundle = load(write_tiny(tmp_path / "bundle", tiny), threads=2)
    tokens = random_tokens(tiny, LENGTH)

    def run(stop: int) -> Any:
        with again(folder) as job:
            stop_after(job, stop)
            return bundle.run_job(job, tokens, output="logits")

    while stage_begun(folder) != "lm":
        with pytest.raises(StoppedError):
            run(2)
    path = folder / "values" / RESULT
    good = path.read_bytes()
    path.write_bytes(good[:20] + bytes([good[20] ^ 1]) + good[21:])
    with pytest.raises(TwoheadsError, match=r"does not hold what the checkpoint says\n  fix: delete this file"):
        run(100)
    path.write_bytes(good)
    done, expected = run(100), bundle.run(tokens, output="logits")
    with Job(folder, resume=True) as job:
        job.finish()
    np.testing.assert_array_equal(done.array, expected.array)
    assert done.report.engine_calls == expected.report.engine_calls
