"""What the two wheels hold: the toolchain's four packages, and the runtime alone."""

from __future__ import annotations

import email.message
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("graphs", "compiler", "export", "runtime")


@pytest.fixture(scope="module", params=["toolchain", "runtime"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    source = ROOT if request.param == "toolchain" else ROOT / "runtime"
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def _folders(wheel: zipfile.ZipFile) -> tuple[str, ...]:
    return FOLDERS if _metadata(wheel)["Name"] == "twoheads" else ("graphs", "runtime")


def _metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def _source_files(folder: str) -> set[str]:
    """The package files of one folder, as they are named in a wheel."""
    base = ROOT / folder
    files = (
        path for path in base.joinpath("twoheads").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return {path.relative_to(base).as_posix() for path in files}


def test_it_holds_exactly_its_packages(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == set().union(*map(_source_files, _folders(wheel)))


def test_every_package_is_typed_and_the_namespace_is_open(wheel):
    names = set(wheel.namelist())
    for folder in _folders(wheel):
        assert f"twoheads/{folder}/py.typed" in names
        assert f"twoheads/{folder}/__init__.py" in names
    assert "twoheads/__init__.py" not in names  # a namespace: both wheels and others may add to it


def test_the_command_and_the_requirements(wheel):
    scripts = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt")]
    metadata = _metadata(wheel)
    needed = {
        requirement.split(">")[0].split("<")[0].split("=")[0].strip()
        for requirement in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in requirement
    }
    if metadata["Name"] == "twoheads":
        assert any("twoheads = twoheads.export.cli:main" in text for text in scripts)
        assert {"torch", "transformers", "onnx", "onnxruntime", "numpy"} <= needed
    else:
        assert scripts == []
        assert needed == {"numpy", "onnxruntime"}


def test_licence(wheel):
    assert _metadata(wheel)["License-Expression"] == "Apache-2.0"
    if _metadata(wheel)["Name"] == "twoheads":
        (name,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
        assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
        assert b"Apache License" in wheel.read(name)
