"""What runs here is told to nobody: ONNX Runtime and OpenVINO report to their makers unless they are told not to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
import twoheads.{package}
import onnxruntime
print(os.environ["ORT_DISABLE_TELEMETRY"], os.listdir(os.environ["TMPDIR"]), os.listdir(os.environ["HOME"]))
"""


@pytest.mark.parametrize("package", ["runtime", "export"])
def test_importing_onnxruntime_starts_no_reports(tmp_path, package):
    """Neither an identifier of the machine in the home, nor a session's file among the temporary ones."""
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", PROGRAM.format(package=package)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "1 [] []", done.stderr


OPENVINO = """
import os
from twoheads.runtime.backends.{module}
print(os.listdir(os.environ["HOME"]))
"""


@pytest.mark.parametrize(
    "module",
    ["openvino_cpu import OpenVinoBackend as B; B(precision='f32', threads=1)", "emulators import run_openvino"],
)
def test_openvino_reports_nothing(tmp_path, module):
    pytest.importorskip("openvino")
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CI", None)
    words = [sys.executable, "-c", OPENVINO.format(module=module)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


def test_who_wants_them_says_so():
    words = [sys.executable, "-c", "import os, twoheads.graphs; print(os.environ['ORT_DISABLE_TELEMETRY'])"]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    assert subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.strip() == "0"
