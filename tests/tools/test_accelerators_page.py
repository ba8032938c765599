"""The page of accelerators says what was accepted, refused, left to the host and not installed."""

from __future__ import annotations

from tools.accelerators import Row, page
from twoheads.export.accelerators.build import Built
from twoheads.export.accelerators.target import load_target
from twoheads.graphs.serialization.bundle_format import Artifact, TargetEntry
from twoheads.graphs.serialization.relative_path import RelativePath


def built(off=(), error=None, refused=None):
    artifacts = {
        "first": Artifact("0", (), (RelativePath("first.bin"),), 1.4, off, error, None),
        "last": Artifact("1", (), (RelativePath("last.bin"),), 2.0, (), None if error is None else error / 2, None),
    }
    entry = TargetEntry("compiler", "1.2-34-release", "fp16", None, artifacts)
    return Built(entry, refused or {}, 0, {"first": 1_000_000, "last": 500_000})


def test_every_bundle_is_a_line_with_its_figures():
    text = page([Row(load_target("qnn"), "minilm", 128, built(error=2e-3), 0)])
    line = next(line for line in text.splitlines() if "minilm" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["compiler 1.2", "fp16", "minilm, 128", "2 of 2", "none", "1.5 MB", "3 s", "2.0e-03"]


def test_what_is_measured_is_added_to_an_earlier_page():
    rknn, qnn = load_target("rknn"), load_target("qnn")
    former = [
        Row(rknn, "minilm", 256, built(off=("Exp e",), refused={"head": "too large"}), 3),
        Row(rknn, "minilm", 128, built(off=("Log log_8",), refused={"body": "too deep"}), 3),
        Row(qnn, "minilm", 128, built(error=1e-3), 0),
    ]
    measured = [Row(rknn, "minilm", 128, built(off=("Max max_9",)), 2, "stock"), Row(qnn, "minilm", 128, None, 0)]
    text = page(measured, page(former))
    assert [line.split("|")[4].strip() for line in text.splitlines() if "compiler 1.2" in line] == [
        "minilm, 128",
        "minilm, 128, stock",
        "minilm, 256",
    ]
    assert text.count("\nOff the accelerator, ") == 2
    assert "- first: Exp e" in text
    assert "- first: Max max_9" in text
    assert "rknn refuses head of minilm at 256: too large" in text
    assert "Log log_8" not in text
    assert "too deep" not in text
    assert "not installed" not in text
    assert page(measured, text) == text


def test_what_is_refused_or_left_to_the_host_is_listed():
    rows = [
        Row(load_target("rknn"), "smollm2", 256, built(off=("Log log_8",)), 3),
        Row(load_target("tensorrt-rtx"), "smollm2", 256, built(refused={"head": "too large"}), 0),
        Row(load_target("iree"), "smollm2", 256, None, 0),
    ]
    text = page(rows)
    assert "- first: Log log_8" in text
    assert "names 3 nodes before the build" in text
    assert "tensorrt-rtx refuses head of smollm2 at 256: too large" in text
    assert "2 of 3" in text
    assert "no emulator" in text
    assert "not installed" in text
