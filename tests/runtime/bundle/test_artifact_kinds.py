"""What artifacts say they are: their beginnings are those that the compilers wrote, and what follows is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from twoheads.export.accelerators.target import load_target
from twoheads.runtime.bundle import artifact_kinds
from twoheads.runtime.bundle.artifact_kinds import artifact_problem

FEATURES = '{cpu = "emeraldrapids", cpu_features = "+adx,+avx512bf16,-avx10.1,+amx-tile,-xop", data_layout = "e"}'

CONTENTS = {
    "coreml": (
        "a.mlpackage/Manifest.json",
        b'{\n    "fileFormatVersion": "1.0.0",\n    "itemInfoEntries": {\n'
        b'        "5904fe89-fe1f-4d56-89fa-80a865007fa3": {\n'
        b'            "author": "com.apple.CoreML",\n            "description": "CoreML Model Weights",\n',
    ),
    "executorch": ("a.pte", b"<\x00\x00\x00ET12eh00 \x00\x00\x00"),
    "iree": ("a.vmfb", b"PK\x03\x04-" + bytes(67) + b"IREE" + bytes(9000) + FEATURES.encode()),
    "litert": ("a.tflite", b"\x1c\x00\x00\x00TFL3\x14\x00 \x00"),
    "openvino": ("a.xml", b'<?xml version="1.0"?>\n<net name="onnx_Frontend_I" version="11">'),
    "qnn": ("a.onnx", b'\x08\x0e:\xda\n\x01q\x12\x03out"\tEPContext' + bytes(9000) + b";soc_type=SM8650;arch=75;"),
    "rknn": ("a.rknn", b"RKNN" + bytes(9000) + b',"target_platform":["rk3588"],"version":"2.5.0"}'),
}
DEVICES = {"openvino": "CPU", "qnn": "57", "rknn": "rk3588"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An artifact of each target, on a processor that has what IREE's may use."""
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile sse4_2\n")
    monkeypatch.setattr(artifact_kinds, "CPU", told)
    found = {target: tmp_path / target / name for target, (name, _) in CONTENTS.items()}
    for target, path in found.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENTS[target][1])
    return found


@pytest.mark.parametrize("target", CONTENTS)
def test_an_artifact_is_of_its_own_target_alone(files: dict[str, Path], target: str) -> None:
    path = files[target]
    beside = path.with_name("other")  # such as weights
    assert artifact_problem(target, DEVICES.get(target), [beside, path]) is None
    for other, disguised in files.items():
        if other != target:
            disguised.write_bytes(path.read_bytes())
            problem = artifact_problem(other, DEVICES.get(other), [disguised])
            assert problem == f"is no artifact of {other}, but one of {target}"
    path.write_bytes(b"")
    assert artifact_problem(target, None, [path]) == f"is no artifact of {target}"
    assert "it has no ." in str(artifact_problem(target, None, [beside]))


@pytest.mark.parametrize(
    ("target", "device", "told"),
    [
        ("qnn", "36", "is built for SM8650, and the manifest says for SM8450"),
        ("rknn", "rk3576", "is built for rk3588, and the manifest says for rk3576"),
        ("qnn", "999", None),  # a chip that is not known here
        ("qnn", None, None),
    ],
)
def test_an_artifact_for_another_chip_is_told(
    files: dict[str, Path], target: str, device: str | None, told: str | None
) -> None:
    assert artifact_problem(target, device, [files[target]]) == told


def test_every_chip_that_is_built_for_has_a_name() -> None:
    assert set(artifact_kinds.CHIPS) == set(load_target("qnn").devices)


def test_machine_code_for_instructions_that_are_not_here_is_told(files: dict[str, Path]) -> None:
    told = artifact_kinds.CPU
    for flags, problem in (
        ("flags\t: fpu avx", "is machine code that may use amxtile, avx512bf16, which this processor has not"),
        ("flags\t: avx512_bf16", "is machine code that may use amxtile, which this processor has not"),
        ("Features\t: asimd", "is machine code that may use amxtile, avx512bf16, which this processor has not"),
    ):
        told.write_text(f"processor\t: 0\n{flags}\n")
        assert artifact_problem("iree", None, [files["iree"]]) == problem
    told.unlink()  # another system, where nothing is known
    assert artifact_problem("iree", None, [files["iree"]]) is None


def test_what_a_runtime_judges_by_itself_is_left_to_it(tmp_path: Path) -> None:
    assert artifact_problem("tensorrt", None, [tmp_path / "a.engine"]) is None
