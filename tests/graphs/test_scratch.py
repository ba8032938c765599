"""What a killed command leaves: its folders are swept by the next one, and its compiler ends with it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from twoheads.graphs.errors import InputError
from twoheads.graphs.scratch import scratch_folder

HOLDER = """
import time
from twoheads.graphs.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "large").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""

DEADLY = """
import os, signal, sys
from twoheads.graphs.scratch import PREFIX, scratch_folder
count = 0

def die(event, arguments):
    global count
    changes = event in ("os.mkdir", "os.rmdir", "os.remove") or event == "open" and arguments[2] & os.O_CREAT
    # Python itself tries its folder of temporary files with a file of another name.
    if changes and (PREFIX in str(arguments[0]) or arguments[0] in ("file", "other")):
        count += 1
        if count == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
with scratch_folder() as folder:
    (folder / "file").touch()
    (folder / "other").touch()
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
from twoheads.graphs.scratch import scratch_folder
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
        assert sorted(temporary.iterdir()) == [kept, kept.with_name(f"{kept.name}.lock")]
    finally:
        for process in (alive, killed):
            process.kill()
            process.communicate()


def test_folders_of_others_stay(temporary):
    for name in ("twoheads-scratch-unlocked", "other"):
        (temporary / name).mkdir()
    (temporary / "other" / "precious").touch()
    for name in ("twoheads-scratch-a", "twoheads-scratch-b.lock"):
        (temporary / name).symlink_to(temporary / "other")
    (temporary / "twoheads-scratch-a.lock").touch()
    with scratch_folder():
        pass
    assert sorted(path.name for path in temporary.iterdir()) == [
        "other",
        "twoheads-scratch-a",
        "twoheads-scratch-b.lock",
        "twoheads-scratch-unlocked",
    ]
    assert (temporary / "other" / "precious").exists()


def test_no_moment_of_a_kill_leaves_what_is_not_swept(temporary):
    """Killed before each operation on files, from the first to the last."""
    moment = 0
    for moment in range(1, 30):
        ended = _start(DEADLY, moment)
        ended.communicate()
        with scratch_folder():
            pass
        assert list(temporary.iterdir()) == []
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert moment > 5


def test_a_full_folder_is_named(temporary):
    with pytest.raises(InputError, match=rf"{temporary}: can't hold intermediate files: No space left.*\n.*TMPDIR"):
        with scratch_folder():
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list(temporary.iterdir()) == []
    monkey = temporary / "gone"
    tempfile.tempdir = str(monkey)
    with pytest.raises(InputError, match="gone: can't hold intermediate files: No such file"), scratch_folder():
        pass


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
