"""``batch --documents``, its status and how it goes on, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.export.conftest import Ran
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.program.program import Limit, Pooling
from twoheads.runtime.documents import document_run
from twoheads.runtime.documents.results import ResultFolder

TINY = Tiny(masks=("full",), pooling=Pooling("mean", True), max_length=Limit(60, "a table"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "b", TINY)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "input_ids": [2] * n}) + "\n" for n in (5, 30, 61, 17)))
    return path


def test_documents_and_what_failed(cli, bundle, lines, tmp_path):
    out = tmp_path / "out"
    ran = cli("batch", bundle, "--documents", lines, "-o", out)
    assert ran.code == 3, ran.err
    assert "4, 1 without a result" in ran.out
    entries = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == ["d5", "d30", "d61", "d17"]
    assert "61 tokens exceed" in entries[2]["error"]
    assert np.load(out / entries[3]["part"]).shape == (3, TINY.width)
    again = cli("batch", bundle, "--documents", lines, "-o", out, "--json")
    assert (again.code, again.json["failed"], again.json["documents"]) == (3, 1, 4)
    assert "done before" in again.err
    assert "another truncate" in cli("batch", bundle, "--documents", lines, "-o", out, "--truncate").err
    cut = cli("batch", bundle, "--documents", lines, "-o", tmp_path / "cut", "--truncate", "--json")
    assert (cut.code, cut.json["failed"], cut.json["parts"]) == (0, 0, 1)


def test_resume_and_status(cli, bundle, lines, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    monkeypatch.setattr(document_run, "PART_TOKENS", 30)
    cli("batch", bundle, "--documents", lines, "-o", whole, "--output", "hidden")
    original = ResultFolder.add

    def full(results, entries, rows, done):
        if results.totals.parts == 1:
            raise OSError(28, "No space left on device")
        original(results, entries, rows, done)

    monkeypatch.setattr(ResultFolder, "add", full)
    stopped: Ran = cli("batch", bundle, "--documents", lines, "-o", out, "--output", "hidden")
    assert stopped.code == 1
    status = cli("status", out)
    assert "stopped" in status.out
    assert "1 of 4" in status.out
    monkeypatch.setattr(ResultFolder, "add", original)
    assert cli("resume", out).code == 3
    for path in whole.glob("[pi]*l*"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    facts = cli("status", out, "--json").json
    assert (facts["state"], facts["calls"], facts["total"]) == ("finished", 4, 4)


@pytest.mark.parametrize("words", [("--lines", "l.txt"), ("--spill", "s"), ("--report", "r.json")])
def test_options_of_lines_are_refused(cli, bundle, lines, tmp_path, words):
    assert "leave out" in cli("batch", bundle, "--documents", lines, "-o", tmp_path / "out", *words).refused()
    assert not (tmp_path / "out").exists()


def test_documents_go_to_a_folder_and_alone(cli, bundle, lines, tmp_path):
    assert "name a folder" in cli("batch", bundle, "--documents", lines, "-o", tmp_path / "out.npz").refused()
    cli("batch", bundle, "--documents", lines, "-o", tmp_path / "out", "--pack", "off")
    assert "leave it out" in cli("resume", tmp_path / "out", "--memory-limit", "1GB").refused()
