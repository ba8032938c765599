"""Ranges for int8 come from real runs: what a compiler is given, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.compiler.lowering.stock import lower_stock
from twoheads.compiler.lowering.tile import Lowered
from twoheads.export.accelerators import build as module
from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.calibration import PARTS, SAMPLES, calibrate_by
from twoheads.export.accelerators.target import Target, load_target
from twoheads.export.cli import main
from twoheads.export.engines.recording import InputRecorder, record_inputs
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny()
WORDS = 40
COMPILERS = Path(module.__file__).parent / "vendors"

COMPILER = """
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
import numpy

def identify():
    return {"name": "fake", "version": "1"}

def build(request):
    def read(file):
        with numpy.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    samples, check = [read(file) for file in request["samples"]], read(request["inputs"])
    facts = {
        "samples": [{n: [str(a.dtype), list(a.shape), float(a.min())] for n, a in s.items()} for s in samples],
        "check is new": all(any((check[n] != s[n]).any() for n in check) for s in samples),
        "onnx": request["onnx"],
    }
    Path(request["folder"], request["name"] + ".json").write_text(json.dumps(facts))
    Path(request["folder"], request["name"] + ".onnx").write_bytes(Path(request["onnx"]).read_bytes())
    if request["outputs"]:
        numpy.savez(request["outputs"], **read(request["outputs"].replace(".outputs.", ".expected.")))

def off_accelerator(log):
    return []
"""


def tokenizer(words: int = WORDS) -> str:
    """Words ``w0``, ``w1``, ... are tokens 0, 1, ..."""
    vocabulary = {f"w{number}": number for number in range(words)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w1"}
    return json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model})


def text(words: int, seed: int = 0) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(1, WORDS, words))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = write_stock(tmp_path / "b")
    # The compiler writes the variants that the model's masks need; this one is for other masks.
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["engines/attention.masked.onnx"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "engines" / "attention.masked.onnx").unlink()
    return path


def write_stock(path: Path) -> Path:
    program = lower_stock(Lowered(make_program(TINY), {})).program
    return write_tiny(path, TINY, program=program, tokenizer=tokenizer())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that has a compiler which writes down what it was given."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "build_fake.py").write_text(COMPILER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    target = Target(
        "fake", "", "build_fake", (), ("fp32", "int8"), False, (), "itself", "stock", -20.0, None, None, "1", ()
    )
    monkeypatch.setattr(module, "load_target", lambda name: target if name == "fake" else load_target(name))
    key = module._key
    real = load_target("qnn").module
    monkeypatch.setattr(
        module, "_key", lambda build, content: key(replace(build, target=replace(build.target, module=real)), content)
    )
    return python


def test_every_engine_gets_several_samples_of_its_own_ports(bundle: Path, fake: Path) -> None:
    built = build_target(
        bundle, "fake", python=fake, precision="int8", calibrate=text(2000), check=True, allow_loss=True
    )
    folder = bundle / "targets" / "fake"
    names = [name for name, artifact in built.entry.artifacts.items() if artifact.files]
    assert {"mid.0", "mid.1", "attention.causal"} <= set(names)
    for name in names:
        facts = json.loads((folder / f"{name}.json").read_text())
        ports = {
            port.name: [
                str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
                [d.dim_value for d in kind.shape.dim],
            ]
            for port in onnx.load(folder / f"{name}.onnx").graph.input
            for kind in [port.type.tensor_type]
        }
        assert PARTS - 1 <= len(facts["samples"]) <= SAMPLES
        for sample in facts["samples"]:
            assert {port: found[:2] for port, found in sample.items()} == ports
            assert min(lowest for _dtype, _shape, lowest in sample.values()) > -1e3  # hidden keys are no -inf
        assert facts["check is new"]
        assert built.entry.artifacts[name].error == 0


def test_samples_are_calls_of_runs_and_the_check_is_one_of_another_run(bundle: Path) -> None:
    opened, words = read_bundle(bundle), text(2000)
    calibration = calibrate_by(opened, words)
    size = -(-len(words) // PARTS)
    runs = [record_inputs(opened, text=words[at * size : (at + 1) * size], calls=10**6) for at in range(PARTS)]
    for name in ("first", "mid.0", "mid.1", "attention.causal", "lm"):
        sampled = [call for run in runs[:-1] for call in run[name]]
        assert len(calibration.samples[name]) == min(SAMPLES, len(sampled))
        for found, known in ((calibration.samples[name], sampled), (calibration.check[name], runs[-1][name])):
            assert all(any(_equal(call, other) for other in known) for call in found)


def _equal(call, other):
    return call.keys() == other.keys() and all(np.array_equal(call[port], other[port]) for port in call)


def test_drawn_calls_are_spread_over_a_run_and_the_same_every_time(bundle: Path) -> None:
    opened = read_bundle(bundle)
    drawn = []
    for _ in range(2):
        recorder = InputRecorder(opened, 4, draw=True)
        recorder.run(320, tokens=np.arange(320) % WORDS)
        drawn.append([call["at"][0, 0] // TINY.block_size for call in recorder.take()["first"]])
        assert recorder.take() == {}
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4
    assert max(drawn[0]) > 4


def test_another_text_builds_again_and_the_same_does_not(bundle: Path, fake: Path) -> None:
    def build(seed: int) -> int:
        given = text(2000, seed)
        return build_target(bundle, "fake", python=fake, precision="int8", calibrate=given, allow_loss=True).reused

    host = build(0)  # an engine without a part on the accelerator has nothing to build
    assert (build(0), build(1)) == (len(read_bundle(bundle).manifest.targets[RelativePath("fake")].artifacts), host)


def test_what_can_not_be_calibrated_is_refused(bundle: Path, fake: Path, tmp_path: Path) -> None:
    def build(path: Path = bundle, precision: str = "int8", words: str | None = None) -> None:
        build_target(path, "fake", python=fake, precision=precision, calibrate=words, allow_loss=True)

    with pytest.raises(InputError, match=r"ranges of values\n  fix: --calibrate FILE"):
        build()
    with pytest.raises(InputError, match="lose something, and fp32 has no use for it"):
        build(precision="fp32", words=text(2000))
    with pytest.raises(InputError, match=r"too short: 5 runs of \d+ tokens are needed, and a part of it has 6"):
        build(words=text(30))
    with pytest.raises(InputError, match="too short"):
        build(words="w1")
    silent = write_tiny(tmp_path / "silent", TINY)
    with pytest.raises(InputError, match="does not run on a text alone"):
        build(silent, words=text(2000))
    with pytest.raises(InputError, match=r"no run over the text calls attention\.masked\n  fix: compile with --for"):
        build(write_stock(tmp_path / "stock"), words=text(2000))
    assert not (bundle / "targets").exists()


def test_the_command_line_asks_for_a_text(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["build", str(bundle), "--target", "ethos-u"]) == 1
    assert "--calibrate FILE" in capsys.readouterr().err
    assert main(["build", str(bundle), "--target", "ethos-u", "--calibrate", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err


def test_rockchips_toolkit_reads_a_line_of_files_for_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Rknn:
        def __init__(self, verbose: bool) -> None: ...

        def build(self, **options: object) -> int:
            asked.append(options)
            return 0

        def __getattr__(self, name: str) -> object:
            return lambda *_, **_options: 0

    monkeypatch.setitem(sys.modules, "rknn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "rknn.api", SimpleNamespace(RKNN=Rknn))
    monkeypatch.syspath_prepend(str(COMPILERS))
    program = import_module("build_rknn")
    kind = onnx.TensorProto.FLOAT
    ports = [onnx.helper.make_tensor_value_info(name, kind, [2]) for name in ("b", "a")]
    made = onnx.helper.make_tensor_value_info("y", kind, [2])
    nodes = [onnx.helper.make_node("Add", ["b", "a"], ["c"]), onnx.helper.make_node("MatMul", ["c", "w"], ["y"])]
    weight = onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    for name, graph in (
        ("e", onnx.helper.make_graph(nodes, "g", ports, [made], [weight])),
        ("attention", onnx.helper.make_graph([onnx.helper.make_node("Add", ["b", "a"], ["y"])], "g", ports, [made])),
    ):
        onnx.save(onnx.helper.make_model(graph), tmp_path / f"{name}.onnx")
    samples = [str(tmp_path / f"e.{number}.npz") for number in range(2)]
    for number, file in enumerate(samples):
        np.savez(file, a=np.full(2, number), b=np.full(2, 10 + number))
    request: dict[str, Any] = {
        "name": "e",
        "onnx": str(tmp_path / "e.onnx"),
        "folder": str(tmp_path),
        "device": "rk3588",
    }
    request |= {"precision": "int8", "samples": samples, "outputs": None}
    program.build(request)
    (options,) = asked
    assert options["do_quantization"] is True
    lines = Path(options["dataset"]).read_text().splitlines()
    assert [[np.load(file)[0] for file in line.split()] for line in lines] == [[10, 0], [11, 1]]
    program.build(request | {"name": "attention", "onnx": str(tmp_path / "attention.onnx")})
    assert asked[1] == {"do_quantization": False}, "what multiplies by no weights stays in half precision"
