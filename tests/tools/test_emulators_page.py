"""The page of emulators says what ran, how far it was from the original, and what the compiler left to the host."""

from __future__ import annotations

from dataclasses import replace

from tools.emulators import Row, page


def test_every_run_is_a_line_with_its_figures():
    rows = [
        Row("qnn-emulator", "onnxruntime-qnn 2.7.0", "stock", 2, 1024, 128, 104, 0, 8.2e-4, 4.8e-4, 0.9971),
        Row("rknn-simulator", "rknn-toolkit2 2.5.0", "tile", 2, 1024, 128, 104, 14, 1e-3, 2e-3, 1.0),
    ]
    lines = [line for line in page(rows).splitlines() if line.startswith(("| qnn", "| rknn"))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][2:] == ["stock", "2", "1024, 128", "104", "none", "8.2e-04", "4.8e-04", "99.7%"]
    assert cells[1][6] == "14"
    assert cells[1][-1] == "100.0%"


def test_measured_backends_are_added_to_those_of_an_earlier_page():
    qnn = Row("qnn-emulator", "onnxruntime-qnn 2.7.0", "tile", 2, 1024, 128, 104, 0, 8.2e-4, 4.8e-4, 0.9971)
    earlier = page([qnn, replace(qnn, backend="openvino", compiler="openvino 1")])
    text = page([replace(qnn, backend="openvino", compiler="openvino 2", layers=30)], earlier)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [line.split("|")[1:5] for line in lines] == [
        [" qnn-emulator ", " onnxruntime-qnn 2.7.0 ", " tile ", " 2 "],
        [" openvino ", " openvino 2 ", " tile ", " 30 "],
    ]
    assert page([replace(qnn, backend="openvino", compiler="openvino 2", layers=30)], text) == text
