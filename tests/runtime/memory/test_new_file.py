"""Files that are there completely or not at all, also after a kill; and nothing else is ever replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.runtime.memory.new_file import output_place, partial_file, replacing, sweep
from twoheads.runtime.memory.npz_writer import NpzWriter

WRITER = """
import sys, time
from pathlib import Path
from twoheads.runtime.memory.{module} import {name}

with {name}(Path(sys.argv[1])) as file:
    {write}
    print("writing", flush=True)
    time.sleep(60)
"""
WRITERS = {
    "replacing": WRITER.format(module="new_file", name="replacing", write="file.write(b'half')"),
    "NpzWriter": WRITER.format(module="npz_writer", name="NpzWriter", write="file.array('a', (4, 4))"),
}


@pytest.fixture(params=sorted(WRITERS))
def writer(request, tmp_path):
    """A process in the middle of writing ``out``."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITERS[request.param], str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_kill_left_is_swept_by_the_next_writer(writer, tmp_path):
    out = tmp_path / "out"
    left = tmp_path / f".out.{writer.pid}.partial"
    assert left.exists()
    sweep(out)
    assert left.exists(), "its writer lives"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert left.exists()
    assert not out.exists()
    with replacing(out) as file:
        file.write(b"whole")
    assert out.read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_is_swept_by_the_next_archive(writer, tmp_path):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with NpzWriter(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_what_is_ours_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [".out.partial", ".out.abc.partial", f".other.{dead.pid}.partial", f"out.{dead.pid}.partial", "out.partial"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".out.{dead.pid}.partial").symlink_to(tmp_path / "victim")
    sweep(tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "precious"
    for name in kept:
        assert (tmp_path / name).exists()


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("precious")
    partial_file(tmp_path / "out").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError), replacing(tmp_path / "out") as file:
        file.write(b"evil")
    with pytest.raises(TwoheadsError), NpzWriter(tmp_path / "out"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def _fail(out):
    with replacing(out) as file:
        file.write(b"new")
        raise ZeroDivisionError


def test_an_error_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.write_text("old")
    with pytest.raises(ZeroDivisionError):
        _fail(out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "there").mkdir()
    out = tmp_path / "out"
    out.symlink_to("there/file")
    with replacing(out) as file:
        file.write(b"1")
    assert out.is_symlink()
    assert (tmp_path / "there/file").read_bytes() == b"1"
    with NpzWriter(out):
        pass
    assert out.is_symlink()
    assert (tmp_path / "there/file").read_bytes().startswith(b"PK")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "null").symlink_to("/dev/null")
    began = time.monotonic()
    for name, what in (("pipe", "a pipe"), ("loop", "a link to itself"), ("null", "a device")):
        with pytest.raises(InputError, match=f"is {what}"):
            output_place(tmp_path / name)
        with pytest.raises(InputError, match=f"is {what}"), replacing(tmp_path / name):
            pass
        with pytest.raises(InputError, match=f"is {what}"), NpzWriter(tmp_path / name):
            pass
    assert time.monotonic() - began < 20
