"""A folder of results that grows part by part and survives a kill: what the last journal names is whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.jobs.contents import read_as
from twoheads.runtime.jobs.job import JOB, JOURNAL, Job, refuse_links
from twoheads.runtime.memory.disk_space import disk_errors, sync_folder

__all__ = ["JOB_FOLDER", "ResultFolder", "Totals", "part_name"]

JOB_FOLDER, INDEX, SUMMARY = ".job", "index.jsonl", "run.json"
PROBLEM, FIX = "can't be written", "free disk space, then run the same command again: it goes on"


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run of documents has done so far, over all processes that worked on it.

    Attributes:
        documents: All that were looked at. failed: Those of them without a result.
        tokens: Of those with one.
        parts: Files of results.
        engine_calls, formula_calls: Counted, and by the closed formulas; equal but for repeated ones, or something is
            wrong.
        repeated_calls: Those of the calls that repeat others; see :class:`~twoheads.runtime.reports.report.Report`.
        blocks: Blocks of the runs.
        seconds: Of the runs alone, without reading, tokenising and writing.
        index_bytes: Of the index file.
        warnings: What runs warned of.
    """

    documents: int = 0
    failed: int = 0
    tokens: int = 0
    parts: int = 0
    engine_calls: int = 0
    formula_calls: int = 0
    blocks: int = 0
    seconds: float = 0.0
    index_bytes: int = 0
    warnings: tuple[str, ...] = ()
    repeated_calls: int = 0


_NUMBERS = [field.name for field in fields(Totals) if field.name != "warnings"]

MOST = 1 << 53
"""No number of anything that documents have is as large."""


class ResultFolder:
    """Parts of results, the index of documents, and the job that says how far they reach; a context manager.

    Args:
        folder: Where; created if it is missing, not with its parents.
        identity: What the results are of; a folder of something else is refused.
        request: What a later command needs to go on.

    Raises:
        InputError: It holds something else, or another process writes it.
        TwoheadsError: A file is missing or damaged, or the disk is full.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        self.folder = folder
        self.totals = Totals()
        self.finished = False
        self._digest = hashlib.sha256()
        self._identity = dict(identity)
        self._request = dict(request)
        if folder.exists() and not (folder / JOB_FOLDER).is_dir() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(str(folder), "holds other files", "name a new folder for the results")
        with disk_errors(folder, PROBLEM, FIX):
            folder.mkdir(exist_ok=True)
        refuse_links(folder)
        self.job = Job(folder / JOB_FOLDER, resume=(folder / JOB_FOLDER / JOB).is_file())

    def __enter__(self) -> Self:
        self.job.__enter__()
        try:
            self._open()
        except BaseException:
            self.job.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.job.__exit__(kind, error, trace)

    def _open(self) -> None:
        if not self.job.resumed:
            self.job.request = self._request
        self.job.identify(self._identity, again=True)
        journal = self.job.journal()
        if journal is not None:
            held = _read_journal(journal, self.job.folder / JOURNAL)
            self.totals = held.totals
            self.finished = self.job.finished
            if not self.finished:
                self._check_files()
                self._check_index(held.index_sha256)
        if not self.finished:
            self._forget_what_the_journal_does_not_name()
        with disk_errors(self.folder, PROBLEM, FIX):
            for left in (*self.folder.glob("part-*.partial"), self.folder / SUMMARY.replace(".json", ".partial")):
                left.unlink(missing_ok=True)
        self._summarize()  # of a finished one too: a kill may have come before it said so

    def _check_files(self) -> None:
        """Everything that the journal names is there."""
        parts = range(self.totals.parts)
        missing = next((at for at in parts if not (self.folder / part_name(at)).is_file()), None)
        index = self.folder / INDEX
        size = index.stat().st_size if index.exists() else 0
        if missing is not None or size < self.totals.index_bytes:
            lost = INDEX if missing is None else part_name(missing)
            raise TwoheadsError(str(self.folder / lost), "is missing or was cut", "delete the folder, and run again")

    def _forget_what_the_journal_does_not_name(self) -> None:
        index = self.folder / INDEX
        with disk_errors(self.folder, PROBLEM, FIX):
            (self.folder / part_name(self.totals.parts)).unlink(missing_ok=True)
            with index.open("ab") as file:
                file.truncate(self.totals.index_bytes)

    def _check_index(self, expected: str) -> None:
        """What is there of the index is what was written, of as many documents and parts as the journal says."""
        path, last, lines = self.folder / INDEX, -1, 0
        with disk_errors(path, PROBLEM, FIX), path.open("rb") if path.exists() else io.BytesIO() as file:
            left = self.totals.index_bytes
            while left > 0 and (line := file.readline(left)):
                left -= len(line)
                lines += 1
                self._digest.update(line)
                last = _part_of(line, last)
        counted = (lines, last + 1)
        if self._digest.hexdigest() != expected or counted != (self.totals.documents, self.totals.parts):
            problem = f"is not what was written: {lines} documents in {last + 1} parts"
            raise TwoheadsError(str(path), problem, "delete the folder, and run again")

    def add(self, entries: Sequence[Mapping[str, Any]], rows: npt.NDArray[np.float32] | None, done: Totals) -> None:
        """Puts a part on the disk, then its documents into the index, then both into the journal.

        Args:
            entries: Lines of the index.
            rows: The part ``[rows, width]``; ``None`` where no document has a result.
            done: What the part took and gave, without files.
        """
        if rows is not None:
            path = self.folder / part_name(self.totals.parts)
            partial = path.with_suffix(".partial")
            with disk_errors(path, PROBLEM, FIX):
                with partial.open("wb") as file:
                    np.save(file, rows, allow_pickle=False)
                    _flush(file)
                partial.replace(path)
        lines = "".join(json.dumps(entry, ensure_ascii=True) + "\n" for entry in entries).encode()
        with disk_errors(self.folder / INDEX, PROBLEM, FIX):
            with (self.folder / INDEX).open("ab") as file:
                file.write(lines)
                _flush(file)
            self._digest.update(lines)
            sync_folder(self.folder)
        self.totals = _sum(self.totals, replace(done, parts=int(rows is not None), index_bytes=len(lines)))
        self.job.write_journal(self._journal())

    def finish(self) -> None:
        """Says that all documents are done."""
        self.job.finish(self._journal())
        self.finished = True
        self._summarize()

    def _journal(self) -> dict[str, Any]:
        content: dict[str, Any] = to_json(_Journal(self.totals, self._digest.hexdigest()))
        return content

    def _summarize(self) -> None:
        """Writes what the results are of, and how far they reach, for whoever finds them."""
        counts = {name: getattr(self.totals, name) for name in ("documents", "failed", "tokens", "parts")}
        content = {**self._identity, **self._request, **(counts if self.finished else {}), "finished": self.finished}
        path = self.folder / SUMMARY
        partial = path.with_suffix(".partial")
        with disk_errors(path, PROBLEM, FIX):
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            partial.replace(path)


@dataclass(frozen=True, slots=True)
class _Journal:
    """What the job's last checkpoint says: what was done, and the sha256 of the index so far."""

    totals: Totals
    index_sha256: str


def _read_journal(journal: Mapping[str, Any], path: Path) -> _Journal:
    """A journal's content.

    Raises:
        TwoheadsError: It is none that :meth:`ResultFolder.add` writes.
    """
    content = {name: held for name, held in journal.items() if name != "finished"}
    held = read_as(_Journal, content, path)
    totals = held.totals
    if any(not 0 <= getattr(totals, name) < MOST for name in _NUMBERS) or totals.failed > totals.documents:
        raise TwoheadsError(str(path), f"is damaged: it counts {to_json(totals)}", "delete the folder, and run again")
    return held


def _part_of(line: bytes, before: int) -> int:
    """The number of the part that a line of the index names; ``before`` where it names none."""
    try:
        found = json.loads(line).get("part")
        return before if found is None else int(str(found).removeprefix("part-").removesuffix(".npy"))
    except (ValueError, AttributeError, RecursionError):
        return before


def part_name(part: int) -> str:
    """The file of a part, numbered from 0."""
    return f"part-{part:05}.npy"


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sum(one: Totals, other: Totals) -> Totals:
    numbers: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in _NUMBERS}
    return replace(one, **numbers, warnings=tuple(dict.fromkeys((*one.warnings, *other.warnings))))
