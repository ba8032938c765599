"""Files of a job that somebody wrote with a checksum of their own: refused by the field, never half understood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.jobs.test_job import TINY, run
from tests.runtime.stopped_jobs import StoppedError
from tests.runtime.tiny_bundle import write_tiny
from twoheads.graphs.errors import TwoheadsError
from twoheads.runtime.jobs.job import Job, read_checked
from twoheads.runtime.jobs.status import read_status


def write(path: Path, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"format": 2, "sha256": digest, "content": text}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("job") / "bundle", TINY)


@pytest.fixture
def job(bundle: Any, tmp_path: Path) -> Path:
    with pytest.raises(StoppedError):
        run(bundle, tmp_path / "job", stop=3)
    return tmp_path / "job"


@pytest.mark.parametrize(
    "text", ["[]", "null", "1", '"x"', "{}", "[" * 100_000, "{", "", '{"identity": [], "request": {}}']
)
def test_a_job_of_something_else(bundle: Any, job: Path, text: str) -> None:
    write(job / "job.json", text)
    with pytest.raises(TwoheadsError, match=r"job\.json|journal of another job"):
        run(bundle, job, resume=True)
    assert read_status(job).state == "damaged"


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no stages": lambda journal: journal.pop("finished_stages"),
    "a stage that is none": lambda journal: journal["finished_stages"].append("x"),
    "a stage twice": lambda journal: journal["finished_stages"].append(journal["finished_stages"][0]),
    "a stage less": lambda journal: journal["finished_stages"].pop(),
    "stages of another type": lambda journal: journal.update(finished_stages={"a": 1}),
    "a value less": lambda journal: journal["values"].popitem(),
    "a value that is none": lambda journal: journal["values"].update(x="0" * 64),
    "a digest of another type": lambda journal: journal["values"].update({next(iter(journal["values"])): 5}),
    "calls of another stage": lambda journal: journal["counters"].update(x=[1, 0, 0.5]),
    "calls below none": lambda journal: journal["counters"].update({next(iter(journal["counters"])): [-1, 0, 0.5]}),
    "rounds as a text": lambda journal: journal.update(rounds="3"),
    "a field that is none": lambda journal: journal.update(x=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_journal_of_something_else(bundle: Any, job: Path, change: Callable[[dict[str, Any]], object]) -> None:
    journal = read_checked(job / "journal.json")
    change(journal)
    write(job / "journal.json", journal)
    with pytest.raises(TwoheadsError, match=r"journal\.json"):
        run(bundle, job, resume=True)
    assert read_status(job).state in ("damaged", "stopped")


@pytest.mark.parametrize("told", [{}, {"calls": "x"}, {"seconds": 10**400}, {"total": None}, {"calls": float("nan")}])
def test_progress_that_is_none_is_not_told(job: Path, told: dict[str, Any]) -> None:
    whole = {"calls": 1, "total": 2, "began": 0, "seconds": 1.0, "updated": 0.0}
    write(job / "progress.json", whole)
    assert read_status(job).progress == whole
    write(job / "progress.json", told if not told else whole | told)
    assert read_status(job).progress == {}


def test_a_file_that_is_too_large_is_not_read(job: Path) -> None:
    with (job / "journal.json").open("r+b") as file:
        file.truncate(1 << 33)
    with pytest.raises(TwoheadsError, match="is larger than"):
        Job(job, resume=True).journal()
