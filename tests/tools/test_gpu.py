"""``python -m tools.gpu`` on a machine without a GPU, and its checks on the simulated device."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.device.simulated_backend import SimulatedBackend
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from tools.gpu import __main__ as command
from tools.gpu import checks, environment
from tools.gpu.page import render
from tools.gpu.runner import Outcome, run_step
from tools.gpu.steps import STEPS, Step
from tools.machine import machine
from twoheads.runtime.backends import cuda_kernels
from twoheads.runtime.backends.cuda_driver import DeviceError

ROOT = Path(__file__).parents[2]
HERE = Path(sys.executable)


def test_each_step_fails_alone_in_one_line_and_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    code = command.main(["--python", str(HERE), "--steps", "driver", "merge kernel", "--out", str(page)])
    assert code == 1
    told = {step["name"]: step for step in json.loads(page.with_suffix(".json").read_text())["steps"]}
    for name in ("driver", "merge kernel"):
        assert told[name]["problem"].startswith("InputError: ")
        assert "libcuda.so.1" in told[name]["problem"]
        assert f"| {STEPS[name].title} | **failed**: InputError" in page.read_text()
    assert told["install"]["problem"] is None
    assert "No card was reached" in page.read_text()
    assert "the device executor: layout, streams" in page.read_text()


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise ValueError('first\\nsecond')", "ValueError: first second"),
        ("import os; os.abort()", "ended with -6"),
        ("import time; time.sleep(60)", "not done after 8 s"),
        ("def driver(): print('no table')", "ended with 0|AttributeError"),
        ("import sys; sys.exit(0)", "ended with 0"),
    ],
)
def test_what_a_step_does_is_told(tmp_path: Path, module: str, told: str) -> None:
    """Whatever it does: raise, die, hang, say nothing."""
    folder = tmp_path / "tools" / "gpu"
    folder.mkdir(parents=True)
    for file in (ROOT / "tools" / "gpu").glob("*.py"):
        (folder / file.name).write_text(file.read_text())
    (folder / "checks.py").write_text(module)
    outcome = run_step(HERE, tmp_path, "driver", Step("checks", "", 8), 100)
    assert outcome.problem is not None
    assert any(outcome.problem.startswith(start) for start in told.split("|")), outcome.problem
    assert not outcome.facts


def test_no_time_and_no_python_are_told() -> None:
    assert run_step(HERE, ROOT, "driver", STEPS["driver"], 0).problem == "not begun: the time was over"
    assert "can't be started" in str(run_step(Path("/nowhere/python"), ROOT, "driver", STEPS["driver"], 9).problem)


def test_what_can_not_be_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "NEEDED", {"numpy": "numpy", "no-such-thing": "no-such-thing>=1"})
    (tmp_path / "wheels").mkdir()
    python, outcome = environment.prepare(tmp_path, tmp_path / "wheels", 100)
    assert python == tmp_path / ".cache" / "gpu" / "environment" / "bin" / "python"
    assert "could not install no-such-thing (" in str(outcome.problem)


def test_the_page_has_what_a_card_showed() -> None:
    plain: dict[str, Any] = {"seconds": 1.0, "facts": {}, "rows": (), "problem": None}
    steps = [
        {**plain, "name": "driver", "facts": {"card": "H100", "memory": "80 GiB"}},
        {**plain, "name": "attention", "rows": [("tokens", "ms"), ("1,024", "0.1")]},
    ]
    page = render({"machine": machine(()), "steps": steps})
    assert "On an H100, by" in page
    assert "card H100; memory 80 GiB" in page
    assert "| 1,024 | 0.1 |" in page


def test_the_page_in_the_docs_is_the_templates() -> None:
    figures = command.PAGE.with_suffix(".json")
    told = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else None
    assert command.PAGE.read_text(encoding="utf-8") == render(told)


def test_the_driver_and_the_merge_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.driver(SimulatedBackend().device).facts["card"] == "simulated"
    assert checks.merge_kernel(SimulatedBackend().device).facts
    plain = cuda_kernels.merge

    def swapped(device: Any, outs: Any, lses: Any, out: int, lse: int, stream: Any) -> None:
        plain(device, outs, lses, out, lse, stream)
        if outs.shape[1] > 1:  # the first row sees nothing
            device.zero(type(outs)(out, "float32", (2 * outs.shape[2],)), stream)

    monkeypatch.setattr(cuda_kernels, "merge", swapped)
    with pytest.raises(checks.DifferenceError, match="a merge of rows of about 1 is off by"):
        checks.merge_kernel(SimulatedBackend().device)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that takes no torch, in the place of the decoder."""
    path = write_tiny(tmp_path / "tiny", Tiny(key_tile=32))
    monkeypatch.setattr(checks, "_bundle", lambda: contextlib.nullcontext(path))
    monkeypatch.setattr(checks, "_tokens", lambda length: random_tokens(Tiny(), length, length))


@pytest.mark.usefixtures("tiny")
def test_whole_runs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.device_executor(SimulatedBackend()).facts["largest error"]
    monkeypatch.setattr(checks, "FLOAT32", 1e-12)
    with pytest.raises(checks.DifferenceError, match="a run of 1000 tokens at most is off by"):
        checks.device_executor(SimulatedBackend())


@pytest.mark.usefixtures("tiny")
def test_graphs_that_are_not_replayed_are_told() -> None:
    assert checks.graphs(SimulatedBackend()).facts["replays"] != "0"
    backend = SimulatedBackend()

    def refuse(_stream: Any) -> Any:
        raise DeviceError("the device", "makes no graphs", "do without")

    end = backend.device.end_capture
    backend.device.end_capture = lambda stream: (end(stream), refuse(stream))[1]  # type: ignore[method-assign]
    with pytest.raises(checks.DifferenceError, match=r"no graph was replayed: .*makes no graphs"):
        checks.graphs(backend)


def test_every_step_has_its_function() -> None:
    for name, step in STEPS.items():
        assert f"def {name.replace(' ', '_')}(" in (ROOT / "tools" / "gpu" / f"{step.module}.py").read_text()
    assert Outcome("x", 0.0).facts == {}
