"""A job: a folder from which a run goes on after a kill, a full disk or a power cut.

``job.json`` says what is run, ``journal.json`` which stages are finished and which files hold what they made, with
checksums, ``values/`` holds these files, ``progress.json`` is for whoever looks. Each is replaced by a complete new one
or not at all, and a file of values is removed only after the journal that no longer names it is on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from twoheads.graphs.errors import InputError, InternalError, TwoheadsError
from twoheads.graphs.serialization.read_json import parse_json, read_json
from twoheads.runtime.jobs.contents import FIX, JobContent, read_as
from twoheads.runtime.memory.disk_space import RESUME, disk_errors, sync_folder

__all__ = [
    "FORMAT",
    "JOB",
    "JOURNAL",
    "LOCK",
    "PROGRESS",
    "RESULT",
    "VALUES",
    "Job",
    "lock",
    "read_checked",
    "refuse_links",
]

FORMAT = 2
"""Of all files of a job; a job of another format is refused."""

JOB, JOURNAL, PROGRESS, LOCK, VALUES = "job.json", "journal.json", "progress.json", "lock", "values"

RESULT = "result.bin"
"""In the folder of values: rows of the output that go to no file of the caller's."""

PROGRESS_SECONDS = 1.0
"""How often progress is written down."""

UNWRITTEN = "can't be written"

LARGEST = 1 << 28
"""Bytes of one of a job's own files; what sampled attention has seen is most of it."""


class Job:
    """A job folder, held by one process at a time; a context manager.

    ::

        with Job("job") as job:
            result = bundle.run_job(job, tokens, output="hidden")
            ...  # put the result where it is safe
            job.finish()

    Args:
        folder: Where; created if it is missing, not with its parents.
        resume: Go on with the job that is there; otherwise an unfinished one is refused.

    Raises:
        InputError: There is no job to resume, or one that would be lost; the folder holds other files; or another
            process runs it.
        TwoheadsError: Its files are damaged, of another format, or the folder can't be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.folder = Path(folder)
        self.resumed = resume
        self.request: dict[str, Any] = {}
        self._lock: int | None = None
        self._told = 0.0
        if resume and not (self.folder / JOB).is_file():
            fix = "give the folder of `run --spill` or of `batch --documents`"
            raise InputError(str(self.folder), "holds no job", fix)

    def __enter__(self) -> Self:
        with disk_errors(self.folder, UNWRITTEN, RESUME):
            self.folder.mkdir(exist_ok=True)
            refuse_links(self.folder)
            self._refuse_others()
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take()
        except BaseException:
            self._let_go()
            raise
        return self

    def _refuse_others(self) -> None:
        """A folder without a job is used only if it is empty, or has what a kill before the first file leaves."""
        if (self.folder / JOB).exists():
            return
        names = {LOCK, *(Path(name).with_suffix(".partial").name for name in (JOB, JOURNAL, PROGRESS))}
        if not self.values.is_symlink() and self.values.is_dir() and not any(self.values.iterdir()):
            names.add(VALUES)
        others = sorted(path.name for path in self.folder.iterdir() if path.name not in names)
        if others:
            problem = f"holds other files than a job's, such as {others[0]}"
            raise InputError(str(self.folder), problem, f"name a new folder, such as {self.folder / 'job'}")

    def _take(self) -> None:
        if self._lock is None or not lock(self._lock):
            raise InputError(str(self.folder), "another process runs this job", "wait for it, or name another folder")
        refuse_links(self.folder, self.values)
        with disk_errors(self.folder, UNWRITTEN, RESUME):
            for name in (JOB, JOURNAL, PROGRESS):  # what a kill left half written
                (self.folder / name).with_suffix(".partial").unlink(missing_ok=True)
        held = self._read(JOB) if (self.folder / JOB).exists() else None
        if self.resumed and held is not None:
            self.request = read_as(JobContent, held, self.folder / JOB).request
        elif held is not None and not self.finished:
            problem = "holds an unfinished job"
            raise InputError(str(self.folder), problem, "continue with `twoheads resume DIR`, or delete the folder")
        else:
            self._clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(self) -> None:
        with disk_errors(self.folder, UNWRITTEN, RESUME):
            for name in (JOB, JOURNAL, PROGRESS):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.values, ignore_errors=True)
            self.values.mkdir()

    @property
    def values(self) -> Path:
        """The folder of the value files."""
        return self.folder / VALUES

    @property
    def finished(self) -> bool:
        """Whether :meth:`finish` was called."""
        return (self.journal() or {}).get("finished") is True

    def require_unfinished(self) -> None:
        """Raises where there is nothing to go on with.

        Raises:
            InputError: :meth:`finish` was called.
        """
        if self.finished:
            problem = "the job is finished, its result was written"
            raise InputError(str(self.folder), problem, "run it anew with --spill")

    def identify(self, identity: Mapping[str, Any], *, again: bool = False) -> None:
        """Says what the job computes; of a resumed one it must be what it was.

        Raises:
            InputError: The job is of another bundle, input or output; or it is finished, and not to be looked at again.
        """
        if not self.resumed:
            self._write(JOB, {"identity": dict(identity), "request": self.request})
            return
        if not again:
            self.require_unfinished()
        held = read_as(JobContent, self._read(JOB), self.folder / JOB).identity
        for name, value in identity.items():
            if held.get(name) != value:
                problem = f"is a job of another {name}: {held.get(name)}, and this run has {value}"
                raise InputError(str(self.folder), problem, FIX)

    def journal(self) -> dict[str, Any] | None:
        """What the last checkpoint says, or ``None`` before the first.

        Raises:
            TwoheadsError: It is damaged, or of another format or job.
        """
        if not (self.folder / JOURNAL).exists():
            return None
        found = self._read(JOURNAL)
        if found.get("job") != self._job_digest():
            raise TwoheadsError(str(self.folder / JOURNAL), "is the journal of another job", FIX)
        del found["job"]
        return found

    def write_journal(self, content: Mapping[str, Any]) -> None:
        """Makes ``content`` the last checkpoint; what it names must be on the disk already."""
        self._write(JOURNAL, {**content, "job": self._job_digest()})

    def tell(
        self,
        done: int,
        total: int,
        *,
        began: int,
        seconds: float,
        now: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes progress down, now and then: calls done, ``began`` of them before this process, in its ``seconds``.

        A job that counts something else than calls does likewise; ``more`` is what else it tells.
        """
        if not now and seconds - self._told < PROGRESS_SECONDS:
            return
        self._told = seconds
        told = {"calls": done, "total": total, "began": began, "seconds": seconds, "updated": time.time()}
        told |= more or {}
        with contextlib.suppress(TwoheadsError):  # a full disk stops the run where it needs room, not here
            self._write(PROGRESS, told, durable=False)

    def finish(self, content: Mapping[str, Any] | None = None) -> None:
        """Marks the job as finished and removes its values: the result is in a safe place."""
        self.write_journal({**(content or {}), "finished": True})
        shutil.rmtree(self.values, ignore_errors=True)

    def _job_digest(self) -> str:
        return hashlib.sha256((self.folder / JOB).read_bytes()).hexdigest()

    def _read(self, name: str) -> dict[str, Any]:
        return read_checked(self.folder / name)

    def _write(self, name: str, content: Mapping[str, Any], *, durable: bool = True) -> None:
        if self._lock is None:
            raise InternalError(f"job {self.folder}: used outside of its `with`")
        text = json.dumps(content)
        digest = hashlib.sha256(text.encode()).hexdigest()
        data = json.dumps({"format": FORMAT, "sha256": digest, "content": text}).encode()
        path = self.folder / name
        temporary = path.with_suffix(".partial")
        with disk_errors(path, UNWRITTEN, RESUME):
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            if durable:
                sync_folder(self.folder)


def read_checked(path: Path) -> dict[str, Any]:
    """The content of one of a job's own files.

    Raises:
        TwoheadsError: It is damaged, missing or of another format.
    """
    outer = read_json(path, fix=FIX, error=TwoheadsError, largest=LARGEST)
    match outer:
        case {"format": int(version), "sha256": str(digest), "content": str(text)} if len(outer) == 3:
            data = text.encode(errors="replace")  # half of a surrogate pair is none of ours
        case _:
            raise TwoheadsError(str(path), "is damaged", FIX)
    if version != FORMAT:
        raise TwoheadsError(str(path), f"is of format {version}, this twoheads reads {FORMAT}", FIX)
    if hashlib.sha256(data).hexdigest() != digest:
        raise TwoheadsError(str(path), "is damaged: its checksum is wrong", FIX)
    content = parse_json(data, str(path), fix=FIX, error=TwoheadsError)
    if not isinstance(content, dict):
        raise TwoheadsError(str(path), "is damaged: it holds no object", FIX)
    return cast("dict[str, Any]", content)


def refuse_links(*folders: Path) -> None:
    """Refuses folders with links in them: what writes there would write somewhere else.

    Raises:
        TwoheadsError: Names the link.
    """
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            link = next((entry.path for entry in entries if entry.is_symlink()), None)
        if link is not None:
            raise TwoheadsError(link, "is a link, and would be written through", "remove it, or name another folder")


def lock(descriptor: int) -> bool:
    """Takes the file's lock, which the system gives back however the process ends; whether it was free."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes in one job are not kept apart there
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
