"""A head in pieces of columns is proven beside the whole one: a piece that is damaged, or cut elsewhere, fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from tests.export.small_decoder import small_decoder
from tests.export.verification.test_verifier import edited
from twoheads.export import VerifyReport, verify, write_bundle
from twoheads.export.cli.app import app
from twoheads.export.verification.report import COMPILATION, PIECES
from twoheads.graphs.program.fused import ColumnsStage
from twoheads.graphs.schedule import head_columns
from twoheads.runtime.backends.protocol import EngineHandle
from twoheads.runtime.execution.engine_pool import EnginePool

FILE = "engines/head_columns.onnx"
LENGTH = 71


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(head_columns, "COLUMNS", 16)
        yield


@pytest.fixture(scope="module")
def bundle(small_pieces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(small_decoder().model, tmp_path_factory.mktemp("pieces") / "bundle", generation=False)


def outcome(report: VerifyReport) -> dict[str, bool]:
    """By check, for logits."""
    return {check.name: check.passed for check in report.checks if check.output == "logits"}


def test_a_right_head_gives_the_same_in_pieces(bundle: Path) -> None:
    found = verify(bundle, small_decoder().module, length=LENGTH)
    assert found.passed
    pieces = found.check("logits", PIECES)
    assert (pieces.max_abs_error, pieces.positions) == (0, small_decoder().model.program.block_size)
    assert pieces.max_magnitude == found.check("logits").max_magnitude > 0


def test_a_piece_of_other_columns_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = EnginePool.columns

    def shifted(pool: EnginePool, stage: ColumnsStage, start: int) -> EngineHandle:
        return columns(pool, stage, start + (start == 64))

    monkeypatch.setattr(EnginePool, "columns", shifted)
    found = verify(bundle, small_decoder().module, length=LENGTH)
    assert outcome(found) == {COMPILATION: True, PIECES: False}
    assert not found.passed


def test_a_piece_that_computes_something_else_fails(bundle: Path, tmp_path: Path) -> None:
    def negated(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        last = model.graph.node[-1]
        (name,), last.output[0] = list(last.output), "scores"
        model.graph.node.append(onnx.helper.make_node("Neg", ["scores"], [name]))
        return model.SerializeToString()

    found = verify(edited(bundle, tmp_path / "b", FILE, negated), small_decoder().module, length=LENGTH)
    assert outcome(found) == {COMPILATION: True, PIECES: False}
    assert not found.passed


def test_inspect_names_the_pieces(bundle: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(bundle), "--engines"])
    assert done.exit_code == 0, done.output
    assert "16 columns at a time" in done.output
    assert done.output.count("head_columns") == 3, "among the engines, of the large head, and with its signature"
