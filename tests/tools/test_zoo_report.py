"""What ``twoheads models`` prints is what the zoo measured, for every model that is in it."""

from __future__ import annotations

import json

import pytest

from tools.zoo.__main__ import COVERAGE, DOCUMENT, ZOO
from tools.zoo.report import render
from twoheads.export.cli import main


def coverage() -> dict:
    return json.loads(COVERAGE.read_text(encoding="utf-8"))


def test_the_table_has_every_model_of_the_zoo() -> None:
    assert [row["name"] for row in coverage()["rows"]] == [entry.name for entry in ZOO]


def test_every_model_passed_or_was_refused_with_the_expected_reason() -> None:
    for entry, row in zip(ZOO, coverage()["rows"], strict=True):
        if entry.refusal is None:
            assert row["passed"], row["name"]
            assert row["engine_calls"] == row["formula_calls"]
        else:
            assert entry.refusal in row["refusal"]


def test_the_document_is_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(coverage()), "run make zoo"


def test_families_and_files_are_many() -> None:
    rows = [row for row in coverage()["rows"] if row["refusal"] is None]
    assert sum(row["door"] == "torch" for row in rows) >= 30
    files = [row for row in rows if row["door"] == "onnx"]
    assert len(files) >= 20
    assert len({row["maker"].split(",")[0] for row in files}) >= 4


def test_models_are_listed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "llama", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all("llama" in row["name"].lower() for row in rows)
    assert main(["models"]) == 0
    assert "compiled" in capsys.readouterr().out
    assert main(["models", "--refused"]) == 0
    assert "FNet" in capsys.readouterr().out


def test_an_unknown_name_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "no-such-family"]) == 1
    assert "no tried model has" in capsys.readouterr().err
