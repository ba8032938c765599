"""The page about whole journeys, and how a later measurement takes the place of an earlier one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.accelerators.test_calibration import text, tokenizer
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from tools.devices import __main__ as command
from tools.devices.journey import PLAIN, Row, runnable
from tools.devices.original import Original
from tools.devices.page import render
from tools.devices.precisions import Cost, lossy
from tools.devices.rounded import ROUNDING, rounding_loss
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import read_bundle

ROW = Row(
    target="qnn",
    model="smollm2",
    backend="qnn",
    device="57",
    precision="fp16",
    compiler="onnxruntime-qnn 2.7.0",
    packages=("onnxruntime 1.32.0", "onnxruntime-qnn 2.7.0"),
    tokens=1024,
    block_size=128,
    lowering="tile",
    pack_bytes=130_000_000,
    canary_error=1.5e-3,
    canary_limit=6e-3,
    output="logits",
    error=1.2e-3,
    same_best=0.998,
    calls=1600,
    seconds=1500.0,
    off=3,
    host_parts=7,
    emulated=True,
    refused=None,
)
ORIGINAL = Original("smollm2", Path("nowhere"), np.arange(1024), "logits", np.eye(1024, 3, dtype=np.float32))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command with journeys that are given: a row, or an error."""
    outcomes: dict[str, Row | Exception] = {}

    def travel(_original: Original, target: str, _block: int, _text: str) -> Row:
        outcome = outcomes[target]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(command, "travel", travel)
    monkeypatch.setattr(command, "load_original", lambda _name, _length: ORIGINAL)

    def main(**given: Row | Exception) -> tuple[int, str, Any]:
        outcomes.update(given)
        page = tmp_path / "devices.md"
        code = command.main(["--models", "smollm2", "--targets", *given, "--out", str(page)])
        return code, page.read_text(encoding="utf-8"), json.loads(page.with_suffix(".json").read_text())

    return main


def test_the_page_says_what_came_of_each_journey(run: Any) -> None:
    code, page, _ = run(qnn=ROW, none=replace(ROW, target=PLAIN, canary_error=None, canary_limit=None, emulated=False))
    assert code == 0
    assert "**smollm2, 1,024 tokens, blocks of 128**" in page
    assert (
        "| qnn | qnn | onnxruntime 1.32.0, onnxruntime-qnn 2.7.0 | fp16 | 130 MB | 1.5e-03 (6.0e-03) | 1.2e-03 | 99.8% "
        "| 1600 | 1500.0 (emulated) | 3 nodes, 7 cut off | A |" in page
    )
    assert "| the bundle itself |" in page
    for backend in ("rknn", "coreml", "tensorrt-engine", "tensorrt-rtx", "onnxruntime:dml", "openvino:NPU"):
        assert f"`{backend}`" in page, "what was only faked is not named"
    assert "built for Arm Ethos-U NPU (Vela)" in page, "what nothing runs is not named"


def test_a_journey_that_fails_is_told_and_leaves_the_others(run: Any) -> None:
    run(qnn=ROW)
    code, page, figures = run(litert=InputError("target litert", "its compiler\ncan't be used", "install it"))
    assert code == 1
    assert "- litert, smollm2: target litert: its compiler can't be used" in page
    assert [row["target"] for row in figures["rows"]] == ["qnn"]
    code, page, figures = run(litert=replace(ROW, target="litert"))
    assert code == 0
    assert not figures["failed"]
    assert [row["target"] for row in figures["rows"]] == ["litert", "qnn"]


def test_what_build_refuses_is_told(run: Any) -> None:
    _, page, _ = run(qnn=replace(ROW, precision="int8", refused=0.0571))
    assert "- qnn, smollm2: `build` refuses it, for it costs 5.7% on the end of the text" in page


def test_what_precisions_cost_is_a_table(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(qnn=ROW)
    asked, lengths = list[tuple[str, str]](), list[int]()

    def costs(name: str, _path: Path, cases: Any, _block: int, words: str, told: Any, *, rounding: bool) -> None:
        asked.extend(cases)
        lengths.append(len(words))
        if rounding:
            told(Cost("qnn", "w4a16", name, ROUNDING, 0, "perplexity", 512, 10.52, 12.0, 0.14))
            return
        told(Cost("litert", "w4", name, "litert", 80_000_000, "perplexity", 512, 10.52, 31.99, 2.04))
        told(Cost("qnn", "w4a16", name, "qnn-emulator", problem="its values are off"))

    monkeypatch.setattr(command, "costs", costs)
    monkeypatch.setattr(command, "model_file", Path)
    out = tmp_path / "devices.md"
    assert command.main(["--models", "smollm2", "--precisions", "litert:w4", "qnn:w4a16", "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert asked == [("litert", "w4"), ("qnn", "w4a16")]
    row = "| smollm2 | litert | w4 | litert | 80 MB | perplexity | 512 | 10.52 | 31.99 | +204.0% | refuses | A |"
    assert row in page
    assert "| its values are off | A |" in page
    assert "| qnn | qnn |" in page, "journeys are kept"
    words = ["--models", "smollm2", "--characters", "900", "--rounding", "--precisions", "qnn:w4a16"]
    assert command.main([*words, "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert (
        "| smollm2 | qnn | w4a16 | rounding |  | perplexity | 512 | 10.52 | 12.00 | +14.0% | asks the emulator | A |"
        in page
    )
    assert "| its values are off | A |" in page, "what another backend measured is kept"
    assert lengths[0] > lengths[1] == 900
    for more in (["litert:fp32"], ["litert:w4", "--rounding"]):
        with pytest.raises(SystemExit, match=f"nothing here measures {more[0]}"):
            command.main(["--precisions", *more, "--out", str(out)])


def test_rounding_alone_is_measured_on_the_models_that_a_compiler_gets(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "b", Tiny(masks=("causal",), layers=1, width=64, head_dim=16), tokenizer=tokenizer())
    small, smaller = (rounding_loss(path, "qnn", precision, text(2000)) for precision in ("w8a16", "w4a16"))
    assert (small.measure, small.tokens, small.before) == ("perplexity", 400, smaller.before)
    assert 0 < abs(small.share) < abs(smaller.share)
    assert not read_bundle(path).manifest.targets, "the bundle is as it was"


def test_precisions_that_lose_something_are_measured_where_something_runs_them() -> None:
    assert ("coreml", "palette4") in lossy()
    assert {target for target, _ in lossy()} == {
        "openvino",
        "litert",
        "executorch",
        "onnxruntime",
        "qnn",
        "rknn",
        "coreml",
    }
    assert not {precision for _, precision in lossy()} & {"fp32", "fp16", "bf16"}


def test_every_row_names_its_machine(run: Any) -> None:
    _, _, figures = run(qnn=ROW, litert=replace(ROW, target="litert"), rknn=replace(ROW, target="rknn"))
    litert, qnn, rknn = figures["rows"]
    litert["machine"] |= {"processor": "Older", "date": "2026-01-02"}
    qnn["machine"] |= {"processor": "Newer", "date": "2026-01-03"}
    rknn["machine"] |= {"processor": "Older", "date": "2026-01-01"}
    page = render(figures)
    assert "Letters tell the machine. A, 2026-01-01 to 2026-01-02: " in page
    assert "cores of Older" in page.partition("; B, 2026-01-03: ")[0]
    assert "cores of Newer" in page.partition("; B, 2026-01-03: ")[2]
    letters = {line.split(" | ")[0]: line[-3] for line in page.splitlines() if line.endswith((" A |", " B |"))}
    assert letters == {"| litert": "A", "| qnn": "B", "| rknn": "A"}


def test_results_of_another_shape_are_no_result() -> None:
    with pytest.raises(RuntimeError, match="smollm2 gave"):
        ORIGINAL.compare(np.zeros((1024, 2), np.float32))
    error, same = ORIGINAL.compare(ORIGINAL.expected * np.float32(1.01))
    assert error == pytest.approx(0.01, rel=1e-3)
    assert same == 1.0


def test_every_target_that_runs_here_is_measured() -> None:
    assert {"openvino", "litert", "executorch", "iree", "onnxruntime", "qnn", "rknn"} == set(runnable())


def test_the_page_in_the_docs_is_what_its_figures_say() -> None:
    page = command.PAGE
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert page.read_text(encoding="utf-8") == render(figures)
