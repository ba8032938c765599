"""Documents that are too large fail alone, and no more of them is held than is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twoheads.export.cli.shared.arguments import read_text
from twoheads.graphs.errors import InputError
from twoheads.runtime.documents import source
from twoheads.runtime.documents.source import inspect_documents, read_documents

LIMIT = 1000


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LARGEST_DOCUMENT", LIMIT)
    monkeypatch.setattr(source, "PIECE", 64)


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_long_line_fails_alone(tmp_path: Path, end: str) -> None:
    lines = [json.dumps({"text": word}) for word in ("one", "x" * LIMIT * 3, "three", "y" * (LIMIT - 13))]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join([lines[0], lines[1], "", *lines[2:], lines[1]]) + end)
    found = list(read_documents(path))
    assert [document.error is None for document in found] == [True, False, True, True, False]
    assert "larger than" in (found[1].error or "")
    assert [document.name for document in found] == [1, 2, 4, 5, 6]
    assert inspect_documents(path)[0] == 5


def test_a_large_file_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("z" * LIMIT)
    (tmp_path / "b.txt").write_text("z" * (LIMIT + 1))
    assert [document.error is None for document in read_documents(tmp_path)] == [True, False]


def test_a_text_is_not_read_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoheads.export.cli.shared.arguments.LARGEST_DOCUMENT", LIMIT)
    (tmp_path / "a.txt").write_text("z" * LIMIT)
    assert len(read_text(tmp_path / "a.txt")) == LIMIT
    (tmp_path / "a.txt").write_text("z" * (LIMIT + 1))
    for path in (tmp_path / "a.txt", Path("/dev/zero")):
        with pytest.raises(InputError, match="larger than"):
            read_text(path)
