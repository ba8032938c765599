"""The command line on bundles with several axes, row values and stages that move rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.axes_models import classifier, encoder_decoder, image
from twoheads.export.cli import main


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> Any:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return run


def test_plan_of_two_lengths(cli, tmp_path: Path) -> None:
    encoder_decoder().load(tmp_path / "b")
    plan = cli("plan", tmp_path / "b", "--length", "n=20,m=50", "--json")
    assert plan["lengths"] == {"n": 20, "m": 50}
    assert plan["length"] == 20
    assert plan["engine_calls"] == plan["formula_calls"]
    formulas = {stage["name"]: stage["formula"] for stage in plan["stages"]}
    assert formulas["cross"] == "ceil(20/M)*ceil(50/K) = 12"
    assert formulas["encoder.in"] == "ceil(50/M) = 7"
    assert formulas["encoder"].endswith("at N = 50")
    assert formulas["decoder.in"] == "n = 3"
    shown = cli("plan", tmp_path / "b", "--length", "n=20,m=50")
    assert "n = 20, m = 50 tokens in 3 blocks of 8" in shown
    assert "Lemma 3.1" in shown


def test_plan_without_a_length(cli, tmp_path: Path) -> None:
    image().load(tmp_path / "b")
    assert cli("plan", tmp_path / "b", "--json")["length"] == 10
    assert "10 tokens in 2 blocks of 8" in cli("plan", tmp_path / "b")


def test_plan_and_inspect_of_stages_that_move_rows(cli, tmp_path: Path) -> None:
    classifier("mean").load(tmp_path / "b")
    stages = {stage["name"]: stage for stage in cli("plan", tmp_path / "b", "--length", 20, "--json")["stages"]}
    assert (stages["rows"]["kind"], stages["rows"]["engine"], stages["rows"]["calls"]) == ("sequence", "concat", 0)
    assert stages["rows"]["theorem"] == "no call"
    assert stages["pooler"]["calls"] == 1
    shown = cli("inspect", tmp_path / "b", "--program")
    assert "features float32[1, n, 6]" in shown
    assert "3 of them move rows" in shown
    assert "%rows: float32[1, n+1, 6] = concat(%row, %features) axis=1" in shown
    data = cli("inspect", tmp_path / "b", "--json")
    assert data["outputs"] == ["hidden", "logits"]
    assert data["inputs"] == [{"name": "features", "dtype": "float32", "shape": [1, "n", 6], "source": "argument"}]


def test_inspect_tells_cross_attention(cli, tmp_path: Path) -> None:
    encoder_decoder().load(tmp_path / "b")
    masks = cli("inspect", tmp_path / "b", "--json")["masks"]
    assert masks == {"full": 1, "causal": 1, "full from n to m": 1}
