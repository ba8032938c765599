"""What the wheel holds: four packages, typed, with the command and the extras."""

from __future__ import annotations

import email.message
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDERS = ("graphs", "compiler", "export", "runtime")


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel_file) as opened:
        yield opened


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
    assert held == set().union(*map(_source_files, FOLDERS))


def test_every_package_is_typed_and_the_namespace_is_open(wheel):
    names = set(wheel.namelist())
    for folder in FOLDERS:
        assert f"twoheads/{folder}/py.typed" in names
        assert f"twoheads/{folder}/__init__.py" in names
    assert "twoheads/__init__.py" not in names  # a namespace: others may add to it


def test_the_command_and_the_requirements(wheel):
    (scripts,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "twoheads = twoheads.export.cli:main" in scripts
    requirements = [Requirement(text) for text in _metadata(wheel).get_all("Requires-Dist", [])]
    base = {requirement.name for requirement in requirements if requirement.marker is None}
    assert base == {"numpy", "onnxruntime", "rich", "typer"}, "what running a bundle takes, and no more"
    extra = {
        requirement.name
        for requirement in requirements
        if requirement.marker is not None and requirement.marker.evaluate({"extra": "compile"})
    }
    assert {"torch", "transformers", "onnx"} <= extra


def test_no_requirement_is_pinned(wheel):
    for text in _metadata(wheel).get_all("Requires-Dist", []):
        for specifier in Requirement(text).specifier:
            assert specifier.operator == ">=", text


def test_licence(wheel):
    assert _metadata(wheel)["License-Expression"] == "Apache-2.0"
    (name,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in wheel.read(name)
