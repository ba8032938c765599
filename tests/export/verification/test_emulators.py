"""Bundles on emulators: a real one, and a made-up one that rounds to float16 and fails as real ones do."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.compiler.lowering.stock import lower_stock
from twoheads.compiler.lowering.tile import Lowered
from twoheads.export.accelerators import build as module
from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.target import Target, load_target
from twoheads.export.cli import main
from twoheads.graphs.errors import BundleError, InputError
from twoheads.runtime import load
from twoheads.runtime.backends.emulator import Emulator, EmulatorBackend, environment_of
from twoheads.runtime.backends.emulators.process import EmulatorError, EmulatorProcess
from twoheads.runtime.bundle.artifacts import ArtifactFiles

TINY = Tiny()
LENGTH = 96
"""A multiple of the block: what the model computes for padding is NaN, which half precision is refused for."""

COMPILER = """
import shutil

def identify():
    return {"name": "fake", "version": "1"}

def build(request):
    shutil.copy(request["onnx"], request["folder"])

def off_accelerator(log):
    return []
"""

EMULATOR = """
import os
import numpy as np
import onnxruntime

BEHAVIOUR = os.environ.get("FAKE", "")
if BEHAVIOUR == "missing":
    raise ImportError("no chip")

def open_artifact(path, device):
    print("a banner")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sides = (session.get_inputs(), session.get_outputs())
    inputs, outputs = ([(port.name, "float32", port.shape) for port in ports] for ports in sides)
    names = [port[0] for port in inputs]

    def run(arrays):
        if BEHAVIOUR == "die":
            os.write(2, b"segmentation fault\\n")
            os._exit(7)
        if BEHAVIOUR == "raise":
            raise ValueError("bus error\\nline two")
        factor = 1e6 if BEHAVIOUR == "overflow" else 1
        rounded = [array.astype(np.float16).astype(np.float32) for array in arrays]
        values = session.run(None, dict(zip(names, rounded)))
        return [(value * factor).astype(np.float16).astype(np.float32) for value in values]

    return inputs, outputs, run
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that has the made-up compiler and emulator of the target ``fake``."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "build_fake.py").write_text(COMPILER)
    (site / "run_fake.py").write_text(EMULATOR)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    target = Target("fake", "", "build_fake", (), ("fp16",), False, (), None, "tile", None, None, None, "1", ())
    monkeypatch.setattr(module, "load_target", lambda name: target if name == "fake" else load_target(name))
    monkeypatch.setattr(module, "_key", lambda _build, content: sha256(content).hexdigest())
    return path


def backend(python: Path) -> EmulatorBackend:
    return EmulatorBackend("fake", threads=2, python=python, emulator=Emulator("fake", "run_fake", ("fake",)))


def build(path: Path, python: Path, tiny: Tiny = TINY, *, stock: bool = False) -> Path:
    program = make_program(tiny)
    write_tiny(path, tiny, program=lower_stock(Lowered(program, {})).program if stock else program)
    build_target(path, "fake", python=python)
    return path


def far(found: Any, tokens: Any, tiny: Tiny = TINY) -> float:
    """The largest distance from the model in float64, as a share of the largest magnitude."""
    want = reference(tiny, tokens)["hidden"]
    return float(np.abs(found - want).max() / np.abs(want).max())


@pytest.mark.parametrize("stock", [False, True], ids=["tile", "stock"])
def test_a_run_on_artifacts_is_the_model_in_half_precision(tmp_path: Path, python: Path, stock: bool) -> None:
    """Scores that the host chooses (``stock``) are what the engine rounds them to: else it is 0.06 off."""
    bundle = build(tmp_path / "b", python, stock=stock)
    loaded = load(bundle, backend=backend(python), threads=2)
    tokens = random_tokens(TINY, LENGTH, 0)
    result = loaded.run(tokens, output="hidden")
    assert 1e-5 < far(result.array, tokens) < 4e-3
    assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
    # Short inputs share no block by codes, and tiles are not added up: both would leave float16's range.
    shorts = [tokens[:16], tokens[16:32]]
    for short, found in zip(shorts, loaded.run(shorts, output="hidden"), strict=True):
        assert far(found.array, short) < 4e-3


@pytest.mark.parametrize("lowering", ["window", "model"])
def test_windowed_layers_run_on_artifacts_of_their_own(tmp_path: Path, python: Path, lowering: str) -> None:
    """The first block's window lies outside of the sequence for the most part: its mask keeps to float16's range."""
    tiny = Tiny(masks=("causal & window(20, 0)",), head=False)
    bundle = write_tiny(tmp_path / "b", tiny, lowering=lowering)
    build_target(bundle, "fake", python=python)
    tokens = random_tokens(tiny, LENGTH, 0)
    result = load(bundle, backend=backend(python), threads=2).run(tokens, output="hidden")
    assert 1e-5 < far(result.array, tokens, tiny) < 4e-3
    calls = 1 if lowering == "model" else tiny.layers + 1
    assert result.report.engine_calls == result.report.formula_calls == calls * LENGTH // 16


@pytest.mark.parametrize(
    ("behaviour", "error", "said"),
    [
        ("missing", InputError, r"backend fake: .*ImportError: no chip\)\n  fix: /.*/python -m pip install fake"),
        ("die", BundleError, "its emulator fails: it ended with 7; the last that it printed is: segmentation fault"),
        ("raise", BundleError, "its emulator fails: line two"),
        ("overflow", BundleError, r"beyond float16's range"),
    ],
)
def test_what_an_emulator_says_is_told(
    tmp_path: Path, python: Path, monkeypatch: Any, behaviour: str, error: Any, said: str
) -> None:
    bundle = build(tmp_path / "b", python)
    monkeypatch.setenv("FAKE", behaviour)
    with pytest.raises(error, match=said):
        load(bundle, backend=backend(python), threads=1).run(random_tokens(TINY, 16, 0), output="hidden")


@pytest.mark.parametrize(
    ("in_process", "kept", "fix"),
    [
        (False, False, "twoheads targets install litert"),
        (False, True, "twoheads targets install litert"),
        (True, False, f"{sys.executable} -m pip install one two"),
    ],
)
def test_where_a_runtime_is_not_installed_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: bool, kept: bool, fix: str
) -> None:
    """A device needs the runtime in its own environment; one that is kept for a target is made by one command."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if kept:
        place = environment_of("litert") / "bin"
        place.mkdir(parents=True)
        (place / "python").symlink_to(sys.executable)
    runtime = EmulatorBackend("x", emulator=Emulator("litert", "run_nix", ("one", "two"), in_process=in_process))
    with pytest.raises(InputError, match="backend x: can't be used in") as told:
        runtime.load_artifact(ArtifactFiles(tmp_path / "x", None, (), None), (), (), {})
    assert told.value.fix == fix


def test_an_environment_without_anything_is_told(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(
        EmulatorError,
        match="it ended with 1; the last that it printed is: ModuleNotFoundError: No module named 'numpy'",
    ):
        EmulatorProcess(bare, "run_fake")


def test_without_artifacts_the_error_says_how_to_make_them(tmp_path: Path, capsys: Any) -> None:
    bundle = write_tiny(tmp_path / "b", TINY)
    with pytest.raises(InputError, match=rf"was not built for qnn\n  fix: twoheads build {bundle} --target qnn"):
        load(bundle, backend="qnn-emulator")
    tokens = tmp_path / "t.npy"
    np.save(tokens, random_tokens(TINY, 16, 0))
    assert main(["run", str(bundle), "--tokens", str(tokens), "-o", "x.npz", "--backend", "rknn-simulator"]) == 1
    assert "was not built for rknn" in capsys.readouterr().err
    with pytest.raises(InputError, match="computes as the bundle was built"):
        load(bundle, backend="qnn-emulator", precision="bf16")


def test_artifacts_in_whole_numbers_are_not_simulated_in_half_precision(tmp_path: Path, python: Path) -> None:
    bundle = build(tmp_path / "b", python)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["targets"]["fake"]["precision"] = "int8"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"built for fake in int8.*\n  fix: twoheads build .* --precision fp16"):
        load(bundle, backend=backend(python))


def test_a_bundle_on_the_emulator_of_a_real_npu(tmp_path: Path) -> None:
    tiny = Tiny(layers=2, head=False)
    bundle = write_tiny(tmp_path / "b", tiny)
    build_target(bundle, "qnn")
    tokens = random_tokens(tiny, 64, 0)
    result = load(bundle, backend="qnn-emulator", threads=1).run(tokens, output="hidden")
    assert 1e-5 < far(result.array, tokens, tiny) < 2e-2
