"""The bundle writer: the folder is there completely or not at all, whatever was there before."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.export.hand_made import hand_made, use_emitters
from tests.killed import Forks, forks
from twoheads.export import write_bundle
from twoheads.export.bundle import staging
from twoheads.export.bundle import writer as bundle_writer
from twoheads.export.bundle.staging import REPLACED
from twoheads.graphs.errors import BundleError, InternalError
from twoheads.graphs.serialization.bundle_format import PARTIAL, WEIGHTS
from twoheads.runtime import load


@pytest.fixture(autouse=True)
def _hand_made_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    use_emitters(monkeypatch)


def digest_of(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_an_existing_target_stays_as_it_is(tmp_path: Path) -> None:
    bundle = write_bundle(hand_made(), tmp_path / "bundle")
    before = digest_of(bundle)
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(hand_made(seed=1), bundle)
    assert digest_of(bundle) == before


def test_overwriting_replaces_the_whole_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(hand_made(), tmp_path / "bundle")
    before = digest_of(bundle)
    write_bundle(replace(hand_made(seed=1), tokenizer_json=None), bundle, overwrite=True)
    after = digest_of(bundle)
    assert after[WEIGHTS] != before[WEIGHTS]
    assert "tokenizer/tokenizer.json" not in after
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    load(bundle)


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", "mine"), ("manifest.json", "{}"), ("manifest.json", "nothing"), ("manifest.json", "[1]")],
)
def test_what_is_not_a_bundle_is_never_overwritten(tmp_path: Path, name: str, content: str) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / name).write_text(content)
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(hand_made(), target, overwrite=True)
    assert (target / name).read_text() == content


def test_a_bundle_with_someone_s_file_in_it_and_a_file_are_not_overwritten(tmp_path: Path) -> None:
    bundle = write_bundle(hand_made(), tmp_path / "bundle")
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        write_bundle(hand_made(), bundle, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(hand_made(), tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_overwriting_through_a_link_and_into_an_empty_folder(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "bundle"
    real.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real)
    write_bundle(hand_made(), link, overwrite=True)
    assert link.is_symlink()
    load(real)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), InternalError("bug"), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, overwrite: bool
) -> None:
    target = tmp_path / "bundle"
    if overwrite:
        write_bundle(hand_made(), target)
    before = digest_of(tmp_path)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(bundle_writer, "_files", fail)  # the very last step before the manifest
    expected = BundleError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        write_bundle(hand_made(seed=1), target, overwrite=overwrite)
    if isinstance(failure, OSError):
        assert str(target) in str(caught.value)
        assert "No space left" in str(caught.value)
        assert "free some space" in str(caught.value)
    assert digest_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if overwrite else [])


def test_a_failed_swap_puts_the_old_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no exchange of two names."""
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    target = write_bundle(hand_made(), tmp_path / "bundle")
    before = digest_of(tmp_path)
    rename = Path.rename

    def fail_into_place(self: Path, to: Path) -> Path:
        if f".{PARTIAL}-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(BundleError, match="Input/output error"):
        write_bundle(hand_made(seed=1), target, overwrite=True)
    assert digest_of(tmp_path) == before


def test_a_disk_that_fills_up_is_named(tmp_path: Path) -> None:
    """A real refusal by the system: files may not grow beyond 100 bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(BundleError) as caught:
            write_bundle(hand_made(), tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / "bundle") in str(caught.value)
    assert "too large" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BundleError, match="disk has 0 MB left"):
        write_bundle(hand_made(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_an_error_and_a_missing_one_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"Not a directory|File exists"):
        write_bundle(hand_made(), tmp_path / "file" / "bundle")
    load(write_bundle(hand_made(), tmp_path / "new" / "folder" / "bundle"))


@pytest.fixture(scope="module")
def killed() -> Iterator[Forks]:
    """Programs that write a bundle and kill themselves."""
    with forks("import tests.export.hand_made, twoheads.export.bundle.writer") as made:
        yield made


KILLED = """
import os, signal
from pathlib import Path
import pytest
from tests.export.hand_made import hand_made, use_emitters
from twoheads.export.bundle import writer as bundle_writer
from twoheads.export import write_bundle
use_emitters(pytest.MonkeyPatch())
target, step = arguments
def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(bundle_writer, step, die)
write_bundle(hand_made(), Path(target))
"""


@pytest.mark.parametrize("step", ["write_weights", "_files"])
def test_what_a_killed_process_leaves_never_loads_and_goes_with_the_next_write(
    tmp_path: Path, step: str, killed: Forks
) -> None:
    target = tmp_path / "bundle"
    assert killed(KILLED, target, step) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".bundle.{PARTIAL}-")
    with pytest.raises(BundleError, match="interrupted compile"):
        load(left)
    write_bundle(hand_made(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


EXCHANGED = """
import os, signal, sys
from pathlib import Path
import pytest
from tests.export.hand_made import hand_made, use_emitters
from twoheads.export import write_bundle
from twoheads.export.bundle import staging
use_emitters(pytest.MonkeyPatch())
target, way, moment = arguments
if way == "renames":
    staging._exchange = lambda *_: False
count = 0
def die(event, arguments):
    global count
    if event in ("os.rename", "os.remove", "os.rmdir"):
        count += 1
        if count == int(moment):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
write_bundle(hand_made(seed=1), Path(target), overwrite=True)
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
@pytest.mark.parametrize("moment", [1, 2, 4])
def test_a_kill_while_folders_change_places(tmp_path: Path, way: str, moment: int, killed: Forks) -> None:
    """The old bundle or the new one is there; without an exchange the old one is back with the next command."""
    target = tmp_path / "bundle"
    write_bundle(hand_made(), target)
    old = digest_of(target)
    assert killed(EXCHANGED, target, way, moment) == -signal.SIGKILL
    if way == "exchange":
        load(target)
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(hand_made(), target)
    load(target)
    assert (digest_of(target) == old) == ((way, moment) in {("renames", 1), ("renames", 2)})
    write_bundle(hand_made(), target, overwrite=True)
    assert digest_of(target) == old
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_only_leftovers_of_this_host_s_dead_processes_are_removed(tmp_path: Path) -> None:
    start = int(psutil.Process().create_time())
    host = staging.host_name()
    kept = [
        f".bundle.{PARTIAL}-elsewhere-{os.getpid()}-1",
        f".other.{PARTIAL}-{host}-{os.getpid()}-1",
        ".bundle.partial-notes",
    ]
    dead = [f".bundle.{PARTIAL}-{host}-{os.getpid()}-{start - 1000}", f".bundle.{REPLACED}-{host}-{2**22 + 1}-1"]
    for name in (*kept, *dead):
        (tmp_path / name).mkdir()
    write_bundle(hand_made(), tmp_path / "bundle", overwrite=True)  # the former is back, and replaced
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", *kept}
