"""Bundles through vendors' compilers: three real ones, and a made-up one that does what real ones do when they fail."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.generation.decoders import bundle_folder
from tests.runtime.tiny_bundle import read_manifest, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import with_long
from twoheads.export.accelerators import build as module
from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.target import Target, load_target, target_names
from twoheads.export.accelerators.target_files import link_file
from twoheads.export.bundle.writer import file_entry
from twoheads.export.cli import main
from twoheads.graphs.errors import BundleError, CompileError, InputError
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny()

FAKE = """
import os
from pathlib import Path

def identify():
    return {"name": "fake", "version": os.environ.get("FAKE_VERSION", "1.0")}

def missing(device):
    return "the fake finds no b2" if device == "b2" else ""

def build(request):
    behaviour = os.environ.get("FAKE", "")
    if "mid" in request["name"] and behaviour == "kill":
        os._exit(9)
    if "mid" in request["name"] and behaviour == "refuse":
        raise ValueError("no such operator\\nTanh is not supported")
    if "mid" in request["name"]:
        print("host: Tanh tanh_3")
    made = Path(request["folder"], request["name"] + ".bin")
    if behaviour == "folder":
        made = made.with_suffix(".bin") / "weights" / "all.bin"
        made.parent.mkdir(parents=True)
    made.write_bytes(f"{request['precision']} {request['device']}".encode())
    if request["outputs"]:
        import numpy
        with numpy.load(request["outputs"].replace(".outputs.", ".expected.")) as expected:
            factor = {"nan": float("nan"), "garbage": 1.6}.get(behaviour, 1.01)
            wrong = {name: expected[name] * factor for name in expected.files}
        numpy.savez(request["outputs"], **wrong)

def off_accelerator(log):
    return [line[6:] for line in log.splitlines() if line.startswith("host: ")]
"""


@pytest.fixture
def bundle(tmp_path):
    return write_tiny(tmp_path / "b", TINY)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A Python that has a compiler ``fake``, and the target of it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "build_fake.py").write_text(FAKE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    target = Target(
        "fake",
        "",
        "build_fake",
        ("fake<2",),
        ("fp32", "fp16"),
        False,
        ("a1", "b2", "c3"),
        "itself",
        "tile",
        -20.0,
        None,
        None,
        "1.0",
        (),
    )
    monkeypatch.setattr(module, "load_target", lambda name: target if name == "fake" else load_target(name))
    monkeypatch.setattr(module, "_key", _keyed(module._key))
    return python


@pytest.fixture
def compiler_program(monkeypatch):
    """Gives a program of ``build/compilers`` by its name, imported into this environment."""
    monkeypatch.syspath_prepend(str(Path(module.__file__).parent / "vendors"))
    return import_module


def _keyed(key):
    """The key without the program of the fake, which lies elsewhere."""
    real = load_target("qnn").module

    def keyed(build, content):
        return key(replace(build, target=replace(build.target, module=real)), content)

    return keyed


@pytest.mark.parametrize("name", ["openvino", "qnn", "tensorrt-rtx"])
def test_a_real_compiler_takes_every_engine(bundle, name):
    built = build_target(bundle, name, check=True)
    assert not built.refused
    assert not any(artifact.off for artifact in built.entry.artifacts.values())
    limit = {"fp32": 1e-5, "fp16": 2e-2}[built.entry.precision]
    for artifact in built.entry.artifacts.values():
        assert (artifact.error is None) == (load_target(name).emulator is None)
        assert artifact.error is None or artifact.error < limit
    loaded = load(bundle)  # with the sha256 of every file
    assert loaded.manifest.targets[name] == built.entry
    assert all(
        loaded.path.joinpath("targets", name, file).exists() for a in built.entry.artifacts.values() for file in a.files
    )
    tokens = random_tokens(TINY, 40, 0)
    result = loaded.run(tokens, output="hidden").array
    assert result is not None
    np.testing.assert_allclose(result, reference(TINY, tokens)["hidden"], rtol=0, atol=5e-5)


def test_every_set_of_weights_is_built_and_nothing_twice(bundle, fake, monkeypatch):
    first = build_target(bundle, "fake", python=fake)
    names = set(first.entry.artifacts)
    assert {"first", "mid.0", "mid.1", "last", "attention.masked_merge"} <= names
    assert first.entry.artifacts["mid.1"].stages == ("mid2",)
    assert build_target(bundle, "fake", python=fake).reused == len(names)
    # What was not checked is built again to be checked; another precision or version is another key.
    assert build_target(bundle, "fake", python=fake, check=True).reused == 0
    assert build_target(bundle, "fake", python=fake, check=True).reused == len(names)
    assert build_target(bundle, "fake", python=fake, precision="fp16").reused == 0
    assert (bundle / "targets/fake/first.bin").read_text() == "fp16 a1"
    monkeypatch.setenv("FAKE_VERSION", "1.1")
    assert build_target(bundle, "fake", python=fake, precision="fp16").reused == 0
    load(bundle)


def test_what_extends_a_sequence_is_built_where_it_is_asked_for(fake, tmp_path, monkeypatch):
    bundle = shutil.copytree(bundle_folder("llama"), tmp_path / "b")
    plain = build_target(bundle, "fake", python=fake)
    more = build_target(bundle, "fake", python=fake, generation=True)
    assert more.reused == len(plain.entry.artifacts)
    steps = more.entry.artifacts.keys() - plain.entry.artifacts.keys()
    assert all(name.startswith("step_8_") for name in steps)
    layers = {stage for name in steps for stage in more.entry.artifacts[name].stages}
    assert layers == {f"step_8_{stage.name}" for stage, _ in read_bundle(bundle).program.bindings}
    with pytest.raises(InputError, match="compile the model without --no-generation"):
        build_target(write_tiny(tmp_path / "t", TINY), "fake", python=fake, generation=True)
    ranged = replace(load_target("qnn"), name="fake", module="build_fake", precisions=("int8",))
    monkeypatch.setattr(module, "load_target", lambda _: ranged)
    with pytest.raises(InputError, match="--generation: is not built in int8"):
        build_target(bundle, "fake", python=fake, generation=True, calibrate="a text", allow_loss=True)


def test_targets_stand_beside_each_other_and_belong_to_the_bundle(bundle, fake):
    build_target(bundle, "openvino")
    build_target(bundle, "fake", python=fake)
    assert set(load(bundle).manifest.targets) == {"fake", "openvino"}
    (bundle / "targets/fake/first.bin").write_bytes(b"fp23 a1")
    with pytest.raises(BundleError, match="altered"):
        load(bundle)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("refuse", "Tanh is not supported"), ("kill", "ended with 9"), ("nan", "not numbers"), ("garbage", "off by 60%")],
)
def test_what_a_compiler_refuses_is_named_and_nothing_is_written(bundle, fake, monkeypatch, behaviour, said):
    before = (bundle / "manifest.json").read_bytes()
    monkeypatch.setenv("FAKE", behaviour)
    with pytest.raises(CompileError, match=said) as error:
        build_target(bundle, "fake", python=fake, check=True)
    assert "fake 1.0 refuses" in str(error.value)
    assert (bundle / "manifest.json").read_bytes() == before
    assert not (bundle / "targets").exists()


@pytest.mark.parametrize("part", ["artifact", "host"])
def test_no_name_in_a_manifest_writes_or_reads_outside_of_the_bundle(bundle, fake, tmp_path, part):
    """A bundle from a stranger once replaced any file of whoever built it, and its engines were opened anywhere."""
    build_target(bundle, "fake", python=fake)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    stored = bundle / "targets/fake" / str(victim).lstrip("/")
    stored.parent.mkdir(parents=True)
    stored.write_text("evil")
    manifest = read_manifest(bundle)
    entry = file_entry(stored)
    manifest["files"][stored.relative_to(bundle).as_posix()] = {
        "kind": "FileEntry",
        "size": entry.size,
        "sha256": entry.sha256,
    }
    artifact = manifest["targets"]["fake"]["artifacts"]["first"]
    if part == "artifact":
        artifact["files"] = [str(victim)]
    else:
        artifact["host"] = {"kind": "HostPart", "file": str(victim), "weights": []}
    write_manifest(bundle, manifest)
    for check in ("full", "size"):
        with pytest.raises(BundleError, match="not a plain path below its folder"):
            read_bundle(bundle, check=check)
    with pytest.raises(BundleError, match="not a plain path below its folder"):
        build_target(bundle, "fake", python=fake)
    assert victim.read_text() == "precious"


def test_linking_replaces_nothing(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        link_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "target"


def test_an_artifact_may_be_a_folder(bundle, fake, monkeypatch):
    monkeypatch.setenv("FAKE", "folder")
    built = build_target(bundle, "fake", python=fake)
    assert built.entry.artifacts["first"].files == ("first.bin/weights/all.bin",)
    assert built.sizes["first"] == len("fp32 a1")
    assert load(bundle).path.joinpath("targets/fake/first.bin/weights/all.bin").read_text() == "fp32 a1"
    assert build_target(bundle, "fake", python=fake).reused == len(built.entry.artifacts)


def test_a_fallback_is_told_and_fails_a_strict_build(bundle, fake):
    built = build_target(bundle, "fake", python=fake)
    assert built.entry.artifacts["mid.0"].off == ("Tanh tanh_3",)
    assert built.entry.artifacts["first"].off == ()
    with pytest.raises(CompileError, match=r"2 engines.*Tanh tanh_3"):
        build_target(bundle, "fake", python=fake, strict=True)


def test_the_error_is_the_largest_share_of_a_magnitude(bundle, fake):
    built = build_target(bundle, "fake", python=fake, check=True)
    assert built.entry.artifacts["last"].error == pytest.approx(0.01, rel=1e-3)


def test_a_missing_compiler_is_one_line_that_says_what_to_install(bundle, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["build", str(bundle), "--target", "rknn"]) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "rknn" in shown
    assert "twoheads targets install rknn" in shown
    with pytest.raises(InputError, match="does not exist"):
        build_target(bundle, "qnn", python=tmp_path / "nowhere")


def test_a_device_is_one_that_the_compiler_can_build_for_here(bundle, fake):
    first = build_target(bundle, "fake", python=fake)
    assert (first.entry.device, build_target(bundle, "openvino").entry.device) == ("a1", "CPU")
    other = build_target(bundle, "fake", python=fake, device="c3")
    assert (bundle / "targets/fake/first.bin").read_text() == "fp32 c3"
    assert (other.entry.device, other.reused) == ("c3", 0)
    with pytest.raises(InputError, match=r"--device b2: the fake finds no b2[^$]*for another device: a1, b2, c3"):
        build_target(bundle, "fake", python=fake, device="b2")
    with pytest.raises(InputError, match="use one of: a1, b2, c3"):
        build_target(bundle, "fake", python=fake, device="d4")
    with pytest.raises(InputError, match="iree has no CPU here"):
        build_target(bundle, "iree", device="CPU")


def test_openvino_says_which_device_it_lacks(compiler_program, monkeypatch):
    program = compiler_program("build_openvino")
    core = SimpleNamespace(available_devices=["CPU", "GPU.0"])
    monkeypatch.setattr(program.openvino, "Core", lambda: core)
    assert [program.missing(device) for device in ("CPU", "GPU")] == ["", ""]
    assert "finds no NPU here, only CPU, GPU.0" in program.missing("NPU")


def test_openvino_names_a_result_that_it_optimises_away(compiler_program, tmp_path):
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    nodes = [
        onnx.helper.make_node("Tanh", ["x"], ["inner"]),
        onnx.helper.make_node("Mul", ["inner", "one"], ["y"]),
    ]
    one = onnx.numpy_helper.from_array(np.ones(3, np.float32), "one")
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], [one])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "e.onnx")
    np.savez(tmp_path / "given.npz", x=np.ones((2, 3), np.float32))
    files = {"onnx": tmp_path / "e.onnx", "inputs": tmp_path / "given.npz", "outputs": tmp_path / "made.npz"}
    request = {name: str(file) for name, file in files.items()} | {"folder": str(tmp_path), "name": "e"}
    compiler_program("build_openvino").build(request | {"precision": "fp32", "device": "CPU"})
    with np.load(tmp_path / "made.npz") as made:
        np.testing.assert_allclose(made["y"], np.full((2, 3), np.tanh(1.0)), rtol=1e-5)


def test_openvino_does_not_check_one_precision_by_the_numbers_of_another(compiler_program, monkeypatch, tmp_path):
    program = compiler_program("build_openvino")
    hint = SimpleNamespace(get_type_name=lambda: "f32")
    core = SimpleNamespace(read_model=str, compile_model=lambda *_: SimpleNamespace(get_property=lambda _: hint))
    monkeypatch.setattr(program, "openvino", SimpleNamespace(Core=lambda: core, save_model=lambda *_, **__: None))
    request = {"precision": "bf16", "onnx": "x.onnx", "device": "CPU", "folder": tmp_path, "name": "x", "outputs": ""}
    program.build(request)
    with pytest.raises(SystemExit, match="this CPU multiplies in f32, not bf16: build it without --check"):
        program.build(request | {"outputs": "o.npz"})


@pytest.mark.parametrize("precision", with_long(("fp16", "bf16"), ["bf16"]))
def test_tensorrt_for_rtx_builds_in_the_types_of_the_model(bundle, precision):
    built = build_target(bundle, "tensorrt-rtx", precision=precision, device="SM120")
    assert not built.refused
    assert built.entry.artifacts["lm"].files == ("lm.engine", "lm.timing")
    assert (built.entry.precision, built.entry.device) == (precision, "SM120")


def test_tensorrt_is_asked_for_a_static_typed_network(compiler_program, monkeypatch, tmp_path):
    """With a stand-in for what only runs on a GPU; the same calls build for RTX above."""
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4"))
    engine, program = compiler_program("trt_engine"), compiler_program("build_tensorrt")
    network = SimpleNamespace(num_inputs=1, get_input=lambda _: SimpleNamespace(name="x", shape=(2, 3)))

    def parse(path, strongly_typed):
        asked.update(path=path, typed=strongly_typed)
        return "builder", network, "parser"

    def configure(_builder, _network, profiles):
        asked["profile"] = profiles[0]["x"]
        return "config"

    def compile_(_network, _config, save_timing_cache):
        asked["cache"] = save_timing_cache
        return b"plan"

    class Runner:
        def __init__(self, plan):
            assert plan == b"plan"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def infer(self, feed):
            return {"y": feed["x"] * 2}

    stand_ins = {"network_from_onnx_path": parse, "create_config": configure, "engine_bytes_from_network": compile_}
    for name, stand_in in {**stand_ins, "TrtRunner": Runner, "engine_from_bytes": lambda plan: plan}.items():
        monkeypatch.setattr(engine, name, stand_in)
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3)))
    paths = {"inputs": str(tmp_path / "in.npz"), "outputs": str(tmp_path / "out.npz"), "onnx": "e.onnx"}
    program.build({"folder": str(tmp_path), "name": "e", **paths})
    assert asked["profile"].min == asked["profile"].opt == asked["profile"].max == (2, 3)
    assert (asked["path"], asked["typed"], asked["cache"]) == ("e.onnx", True, str(tmp_path / "e.timing"))
    assert (tmp_path / "e.engine").read_bytes() == b"plan"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], np.full((2, 3), 2.0))


def test_tensorrt_needs_a_driver(compiler_program, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4"))
    program = compiler_program("build_tensorrt")
    monkeypatch.setattr(program, "DRIVER", "libnone.so.1")
    assert "no driver of one here (libnone.so.1)" in program.missing("")
    monkeypatch.setattr(program, "DRIVER", "libc.so.6")
    assert program.missing("") == ""


def test_openvino_on_a_device_of_half_precision_alone_builds_for_that(compiler_program, monkeypatch, tmp_path):
    """As an NPU, which is not here: engines of float32 would have sines and norms in float16."""
    package = pytest.importorskip("openvino")
    core = package.Core()

    class Half:
        available_devices, read_model = ("CPU", "NPU"), core.read_model

        def compile_model(self, model, device, options):
            return SimpleNamespace(get_property=lambda _: package.Type.f16)

    monkeypatch.setattr(package, "Core", Half)
    program, node = compiler_program("build_openvino"), onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "e.onnx")
    request: dict[str, Any] = {"name": "e", "onnx": str(tmp_path / "e.onnx"), "folder": str(tmp_path), "device": "NPU"}
    request |= {"outputs": None, "ports": [["x"], ["y"]]}
    for precision in ("fp32", "w8"):
        with pytest.raises(SystemExit, match="multiplies in f16 alone: build it with --precision fp16"):
            program.build(request | {"precision": precision})
    assert not (tmp_path / "e.xml").exists()
    program.build(request | {"precision": "fp16"})
    assert 'precision value="f16"' in (tmp_path / "e.xml").read_text()


def test_velas_report_is_read(compiler_program):
    log = """Warning (supported operators) operator: LOG, ofm: 'a._tuplify.<locals>.Wrapper/onnx.functions.OnnxFunction_log_8;'
Reason: Operation has tensor with unsupported DataType Float32 (a.<locals>.Wrapper/onnx.OnnxReduce_reducemax_7;)
Warning (supported operators) operator: DEQUANTIZE, ofm: 'a.<locals>.Wrapper/m.OnnxMatMul_matmul_4;;a.<locals>.Wrapper/t.T_t_3;_dequant'
Warning (supported operators) operator: None, ofm: 'a.<locals>.Wrapper/onnx2torch.min_max.OnnxMinMax_max_8;2'
Warning (supported operators) operator: CAST, ofm: 'a.<locals>.Wrapper;3'
CPU operators = 4 (15.9%)
   CPU: Passthrough = a.<locals>.Wrapper/onnx.functions.OnnxFunction_log_8; (outputs [1, 2, 1, 32])
"""  # noqa: E501
    read = compiler_program("vela_report").cpu_operators
    assert read(log) == ["LOG log_8", "DEQUANTIZE matmul_4", "unnamed max_8", "CAST"]
    assert read("CPU operators = 0 (0.0%)") == []


def test_unknown_names_are_refused(bundle):
    with pytest.raises(InputError, match=r"use one of: .*qnn"):
        build_target(bundle, "abacus")
    with pytest.raises(InputError, match="use one of: fp16"):
        build_target(bundle, "qnn", precision="int4")


def test_every_data_file_reads(bundle):
    assert len(target_names()) >= 6
    assert all(load_target(name).name == name for name in target_names())


def test_an_environment_with_polygraphy_gets_numpy_too():
    """Neither it nor TensorRT asks for it, and the programs need it."""
    for name in ("tensorrt", "tensorrt-rtx"):
        assert {"polygraphy", "numpy"} < set(load_target(name).packages)


def test_the_command_line_builds(bundle, capsys):
    assert main(["build", str(bundle), "--target", "openvino", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == {}
    assert main(["inspect", str(bundle)]) == 0
    assert "openvino" in capsys.readouterr().out
