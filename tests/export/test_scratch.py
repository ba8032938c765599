"""What a killed command leaves: its folders are swept by the next one, and its compiler ends with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from twoheads.export.scratch import scratch_folder

HOLDER = """
import time
from twoheads.export.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "large").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""

COMPILER = """
import os, time

def identify():
    return {"name": "slow", "version": "1"}

def build(request):
    open(request["pid"], "w").write(str(os.getpid()))
    time.sleep(60)

def off_accelerator(log):
    return []
"""

BUILDER = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from twoheads.export.accelerators.compiler_process import Compiler, run_compiler
from twoheads.export.scratch import scratch_folder
with scratch_folder() as folder:
    request = {"name": "first", "log": str(folder / "log"), "pid": sys.argv[2]}
    target = SimpleNamespace(module="build_slow", name="slow")
    run_compiler(target, Compiler(Path(sys.argv[1]), "slow", "1"), [request], folder, lambda done: None)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder of temporary files, for this process and those that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def _start(program, *words):
    return subprocess.Popen([sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, text=True)


def _until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_folders_of_killed_commands_are_swept(temporary):
    alive, killed = _start(HOLDER), _start(HOLDER)
    try:
        assert alive.stdout is not None
        assert killed.stdout is not None
        kept, left = (Path(stdout.readline().strip()) for stdout in (alive.stdout, killed.stdout))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "large").exists()
        with scratch_folder() as folder:
            assert list(folder.iterdir()) == []
            assert not left.exists()
            assert (kept / "large").exists(), "its command lives"
        assert [path for path in temporary.iterdir() if path not in kept.parents] == []
    finally:
        for process in (alive, killed):
            process.kill()
            process.communicate()


def test_folders_of_others_stay(temporary):
    for name in ("twoheads-scratch-unlocked", "other"):
        (temporary / name).mkdir()
    (temporary / "twoheads-scratch-link").symlink_to(temporary / "other")
    with scratch_folder():
        pass
    assert len(list(temporary.iterdir())) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent is gone")
def test_a_compiler_ends_with_its_command(temporary, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "build_slow.py").write_text(COMPILER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    told = tmp_path / "pid"
    builder = _start(BUILDER, python, told)
    try:
        assert _until(lambda: told.exists() and bool(told.read_text()))
        compiler = json.loads(told.read_text())
        os.kill(compiler, 0)
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        assert _until(lambda: not _lives(compiler))
        assert list(temporary.iterdir()), "its folder is left"
        with scratch_folder():
            pass
        assert not list(temporary.iterdir())
    finally:
        builder.kill()
        builder.communicate()


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
