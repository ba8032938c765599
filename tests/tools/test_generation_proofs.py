"""The tool that proves generating on models of real shapes, at a few tokens."""

from __future__ import annotations

import json

import pytest

from tools import generation_proofs
from tools.generation_proofs import main


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(generation_proofs, "BLOCK", 16)


def test_a_shape_is_proven(capsys):
    assert main(["shapes", "--model", "qwen3", "--prompt", "5", "--new", "20"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["passed"]
    assert row["same_tokens"] == 20
    assert row["distinct_tokens"] > 2
    assert row["block_borders"] == 1


def test_a_context_takes_the_bytes_of_the_plan(capsys, monkeypatch):
    assert main(["long", "--tokens", "2000"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["tokens"] for row in rows] == list(range(200, 2001, 200))
    assert all(row["context_bytes"] == row["planned_bytes"] for row in rows)
    assert rows[-1]["context_bytes"] > rows[0]["context_bytes"]
