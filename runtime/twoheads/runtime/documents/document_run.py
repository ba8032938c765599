"""Thousands of documents through a bundle into a folder, part by part; what was stopped goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.runtime.documents.results import ResultFolder, Totals, part_name
from twoheads.runtime.documents.source import inspect_documents, read_documents
from twoheads.runtime.documents.tokens import Prepared, check_document_program, prepare_documents
from twoheads.runtime.inputs.arrays import check_output
from twoheads.runtime.inputs.requests import Given, Inputs
from twoheads.runtime.reports.notices import give_notices
from twoheads.runtime.reports.report import Report, merge_reports
from twoheads.runtime.runs.execute import run_inputs, shares
from twoheads.runtime.runs.groups import MOST_ROW_BYTES
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["DocumentProgress", "run_documents"]

PART_TOKENS, PART_DOCUMENTS = 65_536, 4_096
"""The most tokens and documents of a part: a few groups of inputs that run together, and what a kill can cost."""

DocumentProgress = Callable[[Totals, int], None]
"""Called after each part with what is done and with the number of all documents."""


def run_documents(
    bundle: LoadedBundle,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    output: str | None = None,
    pack: str = "auto",
    truncate: bool = False,
    follow_links: bool = False,
    progress: DocumentProgress | None = None,
) -> Totals:
    """Runs every document of ``source`` and writes the results into the folder ``out``, or goes on with that.

    ``part-00000.npy`` and so on hold rows ``[rows, width]`` in float32: one a document, or one a token for ``hidden``
    and ``logits``. ``index.jsonl`` has a line for each document, in order: its ``id``, ``tokens``, ``part``, first
    ``row`` and number of ``rows``, or its ``error``. The same bits come out whatever the number of threads, and however
    often it was stopped.

    Args:
        bundle: What runs.
        source: A folder of ``.txt`` and ``.md`` files, or a file of JSON lines with ``text`` or ``input_ids``.
        out: New, or of the same bundle, documents and options.
        output: As :meth:`LoadedBundle.run` takes it; ``pack`` too.
        pack: See there.
        truncate: Cut documents that are longer than the model takes; otherwise they fail.
        follow_links: Read what links point to that lead out of the folder ``source``; otherwise they fail.
        progress: See :data:`DocumentProgress`.

    Raises:
        InputError: No such documents, a model that does not read tokens, or a folder of something else.
        TwoheadsError: The folder can't be written, or is damaged.
    """
    source, out = Path(source), Path(out)
    output = check_output(bundle.program, output, positions=False, sink=False)
    share = shares(pack)
    check_document_program(bundle.program)
    total, digest = inspect_documents(source, follow_links=follow_links)
    identity = {
        "bundle": bundle.identity,
        "backend": f"{bundle.backend} {bundle.precision}",
        "key tile": bundle.program.key_tile,
        "output": output,
        "inputs": digest,
        "pack": pack,
        "truncate": truncate,
        "memory limit": bundle.memory_limit,
        **({"follow links": True} if follow_links else {}),
    }
    request = {"kind": "documents", "folder": os.path.abspath(bundle.path), "source": os.path.abspath(source)}
    request["out"] = os.path.abspath(out)
    with ResultFolder(out, identity, request) as results:
        if not results.finished:
            _Run(bundle, results, output, share, total, progress).run(
                source, truncate=truncate, follow_links=follow_links
            )
            give_notices(results.totals.warnings)
        return results.totals


@dataclass(slots=True)
class _Run:
    """One process's work on the documents."""

    bundle: LoadedBundle
    results: ResultFolder
    output: str
    share: bool
    total: int
    progress: DocumentProgress | None

    def run(self, source: Path, *, truncate: bool, follow_links: bool) -> None:
        began, before = time.perf_counter(), self.results.totals
        documents = islice(read_documents(source, follow_links=follow_links), before.documents, None)
        for part in self._parts(prepare_documents(self.bundle, documents, output=self.output, truncate=truncate)):
            self._part(part)
            totals = self.results.totals
            seconds = time.perf_counter() - began
            more = {"failed": totals.failed, "tokens_per_second": (totals.tokens - before.tokens) / seconds}
            self.results.job.tell(
                totals.documents, self.total, began=before.documents, seconds=seconds, now=True, more=more
            )
            if self.progress is not None:
                self.progress(totals, self.total)
        self.results.finish()

    def _parts(self, documents: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """Neighbours together. Where a part ends depends on its documents alone, so it ends there after a kill too."""
        part: list[Prepared] = []
        tokens = rows = 0
        program = self.bundle.program
        value, one = program.row_value(self.output), program.logits if self.output == "last" else program.hidden
        most_rows = MOST_ROW_BYTES // (4 * int((value or program.value(one or program.hidden)).shape[-1]))
        for document in documents:
            length = document.length
            height = 1 if value is None else length
            full = len(part) == PART_DOCUMENTS or tokens + length > PART_TOKENS or rows + height > most_rows
            if part and full:
                yield part
                part, tokens, rows = [], 0, 0
            part.append(document)
            tokens, rows = tokens + length, rows + height
        if part:
            yield part

    def _part(self, part: list[Prepared]) -> None:
        given = (Given((document.request,)) for document in part if document.request is not None)
        inputs = Inputs(self.output, tuple(given), several=True)
        results = run_inputs(self.bundle, self.bundle.executor, inputs, share=self.share) if inputs.given else []
        arrays = [_rows(result.array) for result in results]
        starts = iter(np.cumsum([0, *map(len, arrays)]).tolist())
        heights = iter(map(len, arrays))
        name = part_name(self.results.totals.parts)
        entries: list[dict[str, Any]] = []
        for at, document in enumerate(part, self.results.totals.documents):
            entry: dict[str, Any] = {"document": at, "id": document.name}
            if document.request is None:
                entries.append(entry | {"error": document.error})
                continue
            entry["tokens"] = document.length
            if document.given > document.length:
                entry["cut_from"] = document.given
            entries.append(entry | {"part": name, "row": next(starts), "rows": next(heights)})
        report = merge_reports([result.report for result in results]) if results else None
        self.results.add(entries, np.concatenate(arrays) if arrays else None, _done(part, report))


def _rows(array: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    if array is None:
        raise InternalError("a run without a sink returned no rows")
    return array.reshape(-1, array.shape[-1])


def _done(part: list[Prepared], report: Report | None) -> Totals:
    failed = sum(document.request is None for document in part)
    done = Totals(documents=len(part), failed=failed, tokens=sum(document.length for document in part))
    if report is None:
        return done
    same = ("engine_calls", "formula_calls", "repeated_calls", "blocks", "seconds", "warnings")
    return replace(done, **{name: getattr(report, name) for name in same})
