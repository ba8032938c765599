"""A disk that is full at any moment: an error with the numbers and a remedy, and the checkpoint stays good."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.jobs.test_stages import ToFile
from tests.runtime.stopped_jobs import StoppedError, stage_begun
from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime.execution import checkpoints as checkpoint
from twoheads.runtime.memory.disk_space import check_room

resource = pytest.importorskip("resource")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToFile:
    """Logits, with a checkpoint after every item."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    return ToFile(tmp_path)


@contextlib.contextmanager
def files_of_at_most(nbytes: int) -> Generator[None]:
    """The system refuses what would make a file larger, as it refuses what a full disk has no room for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("stage", "nbytes", "words"),
    [
        (None, 4096, r"values: can't take [\d.]+ kB of a run's values"),
        ("attention0", 200, r"journal\.json: can't be written"),
        ("lm", 200, r"out\.npz: can't be written"),
        ("lm", 20_000, r"out\.npz: can't be written"),
    ],
    ids=["spilling", "checkpoint", "start of the output", "output"],
)
def test_a_full_disk_loses_nothing(run: ToFile, stage: str | None, nbytes: int, words: str) -> None:
    while stage is not None and stage_begun(run.folder) != stage:
        with pytest.raises(StoppedError):
            run.run(stop=2)
    refused = (
        rf"{words}: File too large \([\d.]+ [kMG]B free on its disk\)\n  fix: free disk space, then .*twoheads resume"
    )
    with files_of_at_most(nbytes), pytest.raises(TwoheadsError, match=refused):
        run.run()
    assert not list(run.folder.glob("*.partial")), "a file that was not finished takes room"
    report = run.run().report
    assert report.engine_calls == report.formula_calls
    expected = run.bundle.run(run.tokens, output="logits").array
    np.testing.assert_array_equal(np.load(run.out)["logits"], expected)


def test_what_will_not_fit_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    check_room(tmp_path, 2_000_000, "the output takes")
    refused = rf"{re.escape(str(tmp_path))}: has 2\.0 MB free, and the output takes 2\.1 MB\n  fix: free disk space"
    with pytest.raises(TwoheadsError, match=refused):
        check_room(tmp_path, 2_000_001, "the output takes")
