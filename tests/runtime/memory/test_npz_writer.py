"""Streamed ``.npz`` files: what ``numpy.load`` reads is what was written, and a failure leaves nothing."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.errors import InternalError, TwoheadsError
from twoheads.runtime import NpzWriter, load


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 20),
    width=st.integers(0, 4),
    step=st.integers(1, 7),
    dtype=st.sampled_from(["float32", "float16", "int64"]),
)
def test_rows_come_back(tmp_path, rows, width, step, dtype):
    array = np.arange(rows * width).reshape(rows, width).astype(dtype)
    with NpzWriter(tmp_path / "out.npz") as file:
        file.add("first", np.arange(3))
        sink = file.array("second", array.shape, dtype)
        for start in range(0, rows, step):
            sink.write(start, array[start : start + step])
        file.add("third", np.ones((2, 2), np.float32))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as read:
        assert sorted(read.files) == ["first", "second", "third"]
        assert read["second"].dtype == dtype
        np.testing.assert_array_equal(read["second"], array)
        np.testing.assert_array_equal(read["third"], np.ones((2, 2)))
    assert os.listdir(tmp_path) == ["out.npz"]
    assert zipfile.ZipFile(tmp_path / "out.npz").testzip() is None


def test_rows_need_not_be_contiguous_and_are_cast(tmp_path):
    array = np.arange(24.0).reshape(4, 6)
    with NpzWriter(tmp_path / "out.npz") as file:
        file.array("a", (6, 4)).write(0, array.T)
    read = np.load(tmp_path / "out.npz")["a"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array.T)


def test_streaming_does_not_hold_the_array(tmp_path):
    rows = np.zeros((64, 1024), np.float32)
    tracemalloc.start()
    with NpzWriter(tmp_path / "out.npz") as file:
        sink = file.array("a", (64 * 64, 1024))
        for at in range(64):
            sink.write(64 * at, rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.npz").stat().st_size > 16_000_000
    assert peak < 2_000_000


def test_logits_of_a_run(tmp_path):
    tiny = Tiny(layers=2)
    bundle = load(write_tiny(tmp_path / "b", tiny))
    tokens = random_tokens(tiny, 50)
    with NpzWriter(tmp_path / "out.npz") as file:
        bundle.run(tokens, output="logits", sink=file.array("logits", (50, tiny.vocabulary)))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["logits"], bundle.run(tokens, output="logits").array)


def fail(target, error, *, opened):
    with NpzWriter(target) as file:
        if opened:
            file.array("a", (4, 2)).write(0, np.zeros((1, 2)))
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, error, opened, existing):
    target = tmp_path / "out.npz"
    if existing:
        target.write_text("old")
    with pytest.raises(error):
        fail(target, error, opened=opened)
    assert os.listdir(tmp_path) == (["out.npz"] if existing else [])
    if existing:
        assert target.read_text() == "old"


def test_a_failing_run_leaves_no_file(tmp_path, monkeypatch):
    tiny = Tiny(layers=1)
    bundle = load(write_tiny(tmp_path / "b", tiny))
    from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeCall

    original = OnnxRuntimeCall.run
    monkeypatch.setattr(OnnxRuntimeCall, "run", lambda call: 1 / 0 if call._outputs == ("logits",) else original(call))
    with pytest.raises(ZeroDivisionError):
        with NpzWriter(tmp_path / "out.npz") as file:
            bundle.run(random_tokens(tiny, 50), sink=file.array("logits", (50, tiny.vocabulary)))
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("start", "shape"), [(1, (1, 2)), (0, (5, 2)), (0, (1, 3)), (0, (1, 2, 1))], ids=["gap", "many", "wide", "deep"]
)
def test_wrong_rows(tmp_path, start, shape):
    with pytest.raises(InternalError):
        with NpzWriter(tmp_path / "out.npz") as file:
            file.array("a", (4, 2)).write(start, np.zeros(shape))
    assert os.listdir(tmp_path) == []


def test_incomplete_or_repeated_arrays(tmp_path):
    with pytest.raises(InternalError, match="not complete"), NpzWriter(tmp_path / "out.npz") as file:
        file.array("a", (4, 2)).write(0, np.zeros((3, 2)))
    with NpzWriter(tmp_path / "two.npz") as file:
        sink = file.array("a", (4, 2))
        with pytest.raises(InternalError, match="not complete"):
            file.array("b", (4, 2))
        sink.write(0, np.zeros((4, 2)))
        with pytest.raises(InternalError, match="before"):
            file.add("a", np.zeros(2))
    (tmp_path / "two.npz").unlink()
    assert os.listdir(tmp_path) == []


def test_places_that_can_not_be_written(tmp_path):
    for path, words in ((tmp_path / "no" / "out.npz", "No such file"), (tmp_path, "is a folder")):
        with pytest.raises(TwoheadsError, match=words) as caught:
            with NpzWriter(path):
                pytest.fail("entered")
        assert caught.value.fix


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on file sizes")
def test_a_full_disk(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the middle."""
    code = f"""
import resource, signal, numpy as np
from twoheads.runtime.memory.npz_writer import NpzWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
with NpzWriter({str(tmp_path / "out.npz")!r}) as file:
    sink = file.array("a", (100, 1000))
    for at in range(100):
        sink.write(at, np.zeros((1, 1000)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "out.npz: can't be written: File too large" in done.stderr
    assert os.listdir(tmp_path) == []
