"""Commands that are killed at any moment leave nothing half written, and the next one leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from tests.tiers import cases

KILLS = cases(1, 2)
"""Of each command; tools.scale makes many more."""

TOKENS = 3500
"""Of a run: computing them takes about as long as the imports before it."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bundle") / "b", Tiny(layers=2, vocabulary=40))


def _start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "twoheads.export.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(*words: object) -> None:
    process = _start(*words)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _killed(seconds: float, *words: object) -> None:
    process = _start(*words)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _moments(*words: object) -> list[float]:
    """Moments within the command's time, the later half of it: the earlier one imports."""
    began = time.monotonic()
    _finish(*words)
    spent = time.monotonic() - began
    return [spent * random.uniform(0.4, 1.0) for _ in range(KILLS)]


@pytest.mark.repeated
def test_run(bundle, tmp_path):
    tokens, place = tmp_path / "t.npy", tmp_path / "out"
    np.save(tokens, np.random.default_rng(0).integers(1, 40, TOKENS))
    place.mkdir()
    command = ("run", bundle, "--tokens", tokens, "-o", place / "o.npz", "--report", place / "r.json", "--threads", 1)
    moments = _moments(*command)
    expected = (place / "o.npz").read_bytes()
    for moment in moments:
        for name in ("o.npz", "r.json"):
            (place / name).unlink(missing_ok=True)
        _killed(moment, *command)
        if (place / "o.npz").exists():
            assert (place / "o.npz").read_bytes() == expected
        if (place / "r.json").exists():
            assert json.loads((place / "r.json").read_text())["length"] == TOKENS
    _finish(*command)
    assert (place / "o.npz").read_bytes() == expected
    assert _names(place) == ["o.npz", "r.json"]


@pytest.mark.repeated
def test_documents(bundle, tmp_path):
    lines = tmp_path / "l.jsonl"
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 40, rng.integers(1, 60)).tolist() for _ in range(300)]
    lines.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in documents))
    command = ("batch", bundle, "--documents", lines, "--output", "last", "--threads", 1, "-o")
    whole = tmp_path / "whole"
    moments = _moments(*command, whole)
    killed = tmp_path / "killed"
    for moment in moments:
        _killed(moment, *command, killed)
    _finish(*command, killed)
    assert _names(killed) == _names(whole)
    for name in ("index.jsonl", *(path.name for path in whole.glob("part-*.npy"))):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.long("test_run", "tests/runtime/jobs/test_job.py::test_killed_at_random_moments")
def test_a_job(bundle, tmp_path):
    tokens, place, job = tmp_path / "t.npy", tmp_path / "out", tmp_path / "job"
    np.save(tokens, np.random.default_rng(0).integers(1, 40, TOKENS))
    place.mkdir()
    command = ("run", bundle, "--tokens", tokens, "--threads", 1, "-o")
    moments = _moments(*command, place / "plain.npz")
    expected = (place / "plain.npz").read_bytes()
    _killed(moments[0], *command, place / "o.npz", "--spill", job)
    if not (job / "job.json").exists():
        pytest.skip("killed before it began")
    for moment in moments[1:]:
        _killed(moment, "resume", job)
    last = _start("resume", job)
    _, errors = last.communicate()
    assert last.returncode == 0 or "is finished" in errors
    assert (place / "o.npz").read_bytes() == expected
    assert _names(place) == ["o.npz", "plain.npz"]
    assert os.listdir(job / "values") == [] if (job / "values").exists() else True
