"""Runs that are stopped and go on: the same bits, nothing half-written accepted, foreign and damaged jobs refused."""

from __future__ import annotations

import random
import re
import signal
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.killed import forks
from tests.runtime.stopped_jobs import StoppedError, stop_after
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.runtime import Job, load
from twoheads.runtime.execution import checkpoints as checkpoint
from twoheads.runtime.jobs.status import read_status

TINY = Tiny(key_tile=48, masks=("causal", "full"))
TOKENS = random_tokens(TINY, 333)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("job") / "bundle", TINY)


@pytest.fixture(scope="module")
def expected(bundle):
    result = load(bundle, threads=2).run(TOKENS, output="hidden")
    return result.array, result.report.engine_calls


def run(bundle: Path, folder: Path, *, resume: bool = False, stop: int | None = None, tokens=TOKENS):
    """Runs the job; with ``stop`` it fails when so many journals are written, as on a disk that is full."""
    loaded = load(bundle, threads=2)
    with Job(folder, resume=resume) as job:
        if stop is not None:
            stop_after(job, stop)
        return loaded.run_job(job, tokens, output="hidden")


@pytest.mark.parametrize("seconds", [1000.0, 0.0])
def test_a_stopped_run_goes_on_to_the_same_bits(bundle, expected, tmp_path, monkeypatch, seconds):
    """Stopped at every stage; with 0 seconds, after every item of a stage."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", seconds)
    array, calls = expected
    stops = 0
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "job", stop=1)
    while True:
        stops += 1
        try:
            done = run(bundle, tmp_path / "job", resume=True, stop=1 + stops % 4)
            break
        except StoppedError:
            pass
    assert stops >= 2
    np.testing.assert_array_equal(done.array, array)
    assert done.report.engine_calls == calls, "calls of earlier processes count once"
    assert done.report.rounds == len(done.report.stages)


def test_a_partly_done_stage_is_not_done_again(bundle, expected, tmp_path, monkeypatch):
    """After one pause in each stage, the second process computes the rest only."""
    monkeypatch.setattr(time, "monotonic", iter(np.arange(0.0, 1e6, 30.0)).__next__)
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "job", stop=4)
    with Job(tmp_path / "job", resume=True) as job:
        journal = job.journal()
    assert journal is not None
    assert 0 < sum(count for count, _ in journal["part"]["pieces"]) < 21
    done = run(bundle, tmp_path / "job", resume=True)
    np.testing.assert_array_equal(done.array, expected[0])


def test_a_damaged_value_is_refused(bundle, tmp_path):
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "job", stop=2)
    with Job(tmp_path / "job", resume=True) as job:
        name = next(iter((job.journal() or {})["values"]))
    path = tmp_path / "job" / "values" / f"{sha256(name.encode()).hexdigest()[:24]}.bin"
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(TwoheadsError, match="does not hold what the checkpoint says"):
        run(bundle, tmp_path / "job", resume=True)
    path.write_bytes(good[:-1])
    with pytest.raises(TwoheadsError, match="bytes, the checkpoint says"):
        run(bundle, tmp_path / "job", resume=True)
    path.unlink()
    with pytest.raises(TwoheadsError, match="No such file"):
        run(bundle, tmp_path / "job", resume=True)
    path.write_bytes(good)
    assert run(bundle, tmp_path / "job", resume=True).array is not None


@pytest.mark.parametrize("name", ["job.json", "journal.json"])
def test_a_damaged_or_half_written_journal_is_refused(bundle, tmp_path, name):
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "job", stop=2)
    path = tmp_path / "job" / name
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], good.replace(b"stage", b"stave").replace(b"output", b"outsut"), b""):
        path.write_bytes(bad)
        with pytest.raises(TwoheadsError, match=r"is damaged|is not JSON"):
            run(bundle, tmp_path / "job", resume=True)
    path.write_bytes(good.replace(b'"format": 2', b'"format": 3'))
    with pytest.raises(TwoheadsError, match="is of format 3"):
        run(bundle, tmp_path / "job", resume=True)


def test_a_foreign_job_is_refused(bundle, tmp_path):
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "job", stop=2)
    with pytest.raises(InputError, match="another input"):
        run(bundle, tmp_path / "job", resume=True, tokens=TOKENS[::-1].copy())
    with pytest.raises(InputError, match="another bundle"):
        run(write_tiny(tmp_path / "other", Tiny(seed=5)), tmp_path / "job", resume=True)
    with pytest.raises(InputError, match="unfinished job"):
        run(bundle, tmp_path / "job")
    with pytest.raises(InputError, match="holds no job"):
        run(bundle, tmp_path / "nothing", resume=True)
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "second", stop=3)
    (tmp_path / "job" / "journal.json").write_bytes((tmp_path / "second" / "journal.json").read_bytes())
    assert run(bundle, tmp_path / "second", resume=True).array is not None


def test_one_process_at_a_time(tmp_path):
    with Job(tmp_path / "job"), pytest.raises(InputError, match="another process"), Job(tmp_path / "job"):
        pass


def test_a_finished_job_may_be_replaced_and_not_resumed(bundle, tmp_path):
    loaded = load(bundle, threads=1)
    for _ in range(2):
        with Job(tmp_path / "job") as job:
            loaded.run_job(job, TOKENS, output="last")
            assert list(job.values.iterdir())
            job.finish()
        assert not (tmp_path / "job" / "values").exists()
    with Job(tmp_path / "job", resume=True) as job, pytest.raises(InputError, match="finished"):
        loaded.run_job(job, TOKENS, output="last")


@pytest.mark.parametrize("file", ["notes.txt", "values/mine.npy", "journal.json"])
def test_a_folder_of_other_files_is_left_as_it_is(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        Job(tmp_path).__enter__()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file]
    assert (tmp_path / file).read_text() == "mine"


def test_what_a_kill_before_the_first_file_leaves_is_no_other_file(tmp_path):
    for name in ("lock", "job.partial"):
        (tmp_path / name).touch()
    (tmp_path / "values").mkdir()
    with Job(tmp_path) as job:
        assert not job.finished


def test_a_job_takes_one_input(bundle, tmp_path):
    with Job(tmp_path / "job") as job, pytest.raises(InputError, match="runs one input"):
        load(bundle).run_job(job, np.stack([TOKENS, TOKENS]), output="hidden")


KILLED = """
import os, signal, threading
import numpy as np
from twoheads.runtime.execution import checkpoints as checkpoint
from twoheads.runtime import Job, NpzWriter, load
folder, bundle, out, resume, moment, seconds = arguments
left = int(moment)  # flushes and replacements of files until this process kills itself, between two of them; 0 never

def deadly(operation):
    def call(*words):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*words)
    return call

if float(seconds):
    timer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()
os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
checkpoint.CHECKPOINT_SECONDS = 0.005
tokens = np.load(folder + ".npy")
with Job(folder, resume=resume == "True") as job, NpzWriter(out, keep=".kept") as file:
    bundle = load(bundle, threads=2)
    bundle.run_job(job, tokens, output="logits", sink=file.array("logits", (len(tokens), 40)))
"""


def test_killed_at_random_moments(bundle, tmp_path):
    """SIGKILL, again and again, at any time and in the middle of checkpoints, until a process gets through."""
    folder, out = tmp_path / "job", tmp_path / "out.npz"
    np.save(f"{folder}.npy", TOKENS)
    random_moments, in_checkpoints = random.Random(3), [4, 7, 0, 0, 0, 13, 2]
    with forks("import twoheads.runtime") as killed:
        for moment in [*in_checkpoints, *[None] * 33]:
            seconds = random_moments.uniform(0.02, 0.4) if moment == 0 else 0
            code = killed(KILLED, folder, bundle, out, (folder / "job.json").exists(), moment or 0, seconds)
            assert code in (0, -signal.SIGKILL)
            if code == 0 or out.exists():  # killed after its last write: what has the name is complete
                break
    assert not (tmp_path / ".kept").exists()
    expected = load(bundle).run(TOKENS, output="logits").array
    np.testing.assert_array_equal(np.load(out)["logits"], expected)


def test_status_of_a_job(bundle, tmp_path):
    folder = tmp_path / "job"
    with pytest.raises(StoppedError):
        run(bundle, folder, stop=3)
    stopped = read_status(folder)
    assert (stopped.state, stopped.stages, stopped.part) == ("stopped", ("first", "attention0", "mid1"), None)
    assert stopped.identity["output"] == "hidden"
    assert 0 < (stopped.calls or 0) <= stopped.progress["calls"]
    with Job(folder, resume=True):
        assert read_status(folder).state == "running"
    (folder / "progress.json").write_bytes(b"{")
    assert (read_status(folder).state, read_status(folder).progress) == ("stopped", {})
    done = run(bundle, folder, resume=True)
    told = read_status(folder).progress
    assert told["calls"] == told["total"] == done.report.engine_calls
    assert 0 < told["began"] < told["calls"]
    with Job(folder, resume=True) as job:
        job.finish()
    assert read_status(folder).state == "finished"


def test_status_of_a_damaged_job(bundle, tmp_path):
    folder = tmp_path / "job"
    with pytest.raises(StoppedError):
        run(bundle, folder, stop=3)
    for path in (next((folder / "values").iterdir()), folder / "journal.json", folder / "job.json"):
        good = path.read_bytes()
        if path.suffix == ".bin":
            path.unlink()
        else:
            path.write_bytes(good[:-9])
        damaged = read_status(folder)
        assert damaged.state == "damaged"
        assert re.search(rf"{path.name}.* is (missing|damaged|not JSON)", str(damaged.problem))
        path.write_bytes(good)
    assert read_status(folder).state == "stopped"
