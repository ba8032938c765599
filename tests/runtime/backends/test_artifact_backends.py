"""Whole runs on what vendors' compilers made, by the vendors' own runtimes, against the model in NumPy."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.export.accelerators.build import build_target
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.program.program import Port
from twoheads.runtime import load
from twoheads.runtime.backends import emulator as module
from twoheads.runtime.backends.emulator import Emulator, EmulatorBackend
from twoheads.runtime.backends.emulators.in_process import InProcess
from twoheads.runtime.bundle.artifacts import ArtifactFiles

TINY = Tiny(layers=1, key_tile=32)

BACKENDS = {"openvino": "openvino-ir", "iree": "iree", "litert": "litert", "executorch": "executorch"}


@pytest.mark.parametrize("target", sorted(BACKENDS))
def test_a_run_on_the_targets_own_runtime_is_the_model(tmp_path: Path, target: str) -> None:
    bundle = write_tiny(tmp_path / "b", TINY)
    try:
        build_target(bundle, target)
    except InputError as error:
        if target == "openvino" or "its compiler can't be used" not in error.problem:  # it is in this environment
            raise
        pytest.skip(f"{error.problem}; {error.fix}")
    # Each thread has a process of the runtime; ExecuTorch's takes five seconds to load.
    loaded = load(bundle, backend=BACKENDS[target], threads=1 if target == "executorch" else 2)
    for length in (16, 75, 96):
        tokens = random_tokens(TINY, length)
        result = loaded.run(tokens, output="logits")
        expected = reference(TINY, tokens)["logits"]
        assert result.array is not None
        np.testing.assert_allclose(result.array, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls


def test_openvino_runs_in_half_precision_what_was_built_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its GPUs and NPUs compute: with the parts of whole numbers on the host, as of other chips."""
    package: Any = pytest.importorskip("openvino")
    core = package.Core()
    if "FP16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no products of float16")
    bundle = write_tiny(tmp_path / "b", TINY)
    entry = build_target(bundle, "openvino", precision="fp16").entry
    assert any(artifact.host is not None for artifact in entry.artifacts.values())
    loaded = load(bundle, backend="openvino-ir", threads=1)
    tokens = random_tokens(TINY, 96)  # without padding, which this model makes NaN
    found, expected = np.asarray(loaded.run(tokens, output="logits").array), reference(TINY, tokens)["logits"]
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 1e-2

    class Wide:  # as openvino.Core
        """A processor that multiplies in float32 whatever it is asked for."""

        available_devices, read_model = core.available_devices, core.read_model

        def compile_model(self, model: Any, device: str, options: dict[str, Any]) -> Any:
            return core.compile_model(model, device, options | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(package, "Core", Wide)
    with pytest.raises(BundleError, match="is built for f16, and this CPU multiplies in f32"):
        load(bundle, backend="openvino-ir", threads=1).run(tokens, output="logits")


def numbered(path: Path, shape: list[int] | None, count: int = 1) -> str:
    """A runtime whose artifacts keep no names: doubles its only input."""
    path.write_text(
        f"""
def open_artifact(path, device):
    if path.endswith("bad"):
        raise ValueError("first line\\nno such section")
    ports = [("#" + str(at), "float32", {shape}) for at in range({count})]
    return ports, [("#0", "float32", {shape})], lambda arrays: [2 * arrays[0]]
"""
    )
    return path.stem


def opened(monkeypatch: pytest.MonkeyPatch, name: str, file: str, folder: Path) -> Any:
    monkeypatch.setattr(module, "InProcess", partial(InProcess, folder=folder))
    backend = EmulatorBackend("fake", emulator=Emulator("fake", name, ("fake",), ("fp32",), in_process=True))
    port = Port("x", "float32", (2, 3)), Port("y", "float32", (2, 3))
    return backend.load_artifact(ArtifactFiles(folder / file, None, (), None), port[:1], port[1:], {})


@pytest.mark.parametrize("shape", [[2, 3], None])
def test_ports_without_names_are_the_engines_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: list[int] | None
) -> None:
    engine = opened(monkeypatch, numbered(tmp_path / "run_fake.py", shape), "good", tmp_path)
    call = engine.new_call()
    given, made = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((2, 3), np.float32)
    call.bind_input(0, given)
    call.bind_output(0, made)
    call.run()
    np.testing.assert_array_equal(made, 2 * given)


@pytest.mark.parametrize(
    ("shape", "count", "file", "told"),
    [
        ([3, 2], 1, "good", "takes #0, which the engine has not"),
        ([2, 3], 2, "good", "has a port #1, which the engine has not"),
        ([2, 3], 1, "bad", "its runtime fails: ValueError: no such section"),
    ],
)
def test_an_artifact_of_another_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: list[int], count: int, file: str, told: str
) -> None:
    name = numbered(tmp_path / "run_fake.py", shape, count)
    with pytest.raises(BundleError, match=told):
        opened(monkeypatch, name, file, tmp_path)


def test_a_runtime_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run_fake.py").write_text("import no_such_runtime")
    with pytest.raises(InputError, match=r"(?s)backend fake.*no_such_runtime.*pip install fake"):
        opened(monkeypatch, "run_fake", "good", tmp_path)


def test_what_a_library_prints_while_it_opens_is_no_part_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = numbered(tmp_path / "run_fake.py", [2, 3])
    file = tmp_path / "run_fake.py"
    says = 'import ctypes\n\nputs = ctypes.CDLL(None).puts\nputs(b"imported")\n'
    file.write_text(says + file.read_text().replace("    ports =", '    puts(b"opened")\n    ports ='))
    opened(monkeypatch, name, "good", tmp_path)
    print("{}", flush=True)
    ctypes.CDLL(None).fflush(None)
    told = capfd.readouterr()
    assert told.out == "{}\n"
    assert told.err == "imported\nopened\n"


def test_artifacts_that_two_threads_open_at_once_leave_the_output_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second begins while the first is inside, and ends after it."""
    name = numbered(tmp_path / "run_fake.py", [2, 3])
    first, second, ended = threading.Event(), threading.Event(), threading.Event()
    stages = {"first": (first, second), "second": (second, ended)}
    monkeypatch.setattr(sys, "stages_of_a_test", stages, raising=False)
    file = tmp_path / "run_fake.py"
    waits = """    import sys
    told, awaited = sys.stages_of_a_test[path.rpartition("/")[2]]
    told.set()
    assert awaited.wait(30)
    ports ="""
    file.write_text(file.read_text().replace("    ports =", waits))

    def open_first() -> None:
        opened(monkeypatch, name, "first", tmp_path)
        ended.set()

    one = threading.Thread(target=open_first)
    one.start()
    assert first.wait(30)
    opened(monkeypatch, name, "second", tmp_path)
    one.join()
    os.write(1, b"{}\n")
    assert capfd.readouterr().out == "{}\n"
