"""This project as a wheel, made of the files that run here: the same bytes wherever they are the same."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import tomllib
import zipfile
from pathlib import Path

from twoheads.graphs.errors import InputError

__all__ = ["write_wheel"]

PACKAGES = ("graphs", "compiler", "export", "runtime")
OLDEST = (1980, 1, 1, 0, 0, 0)
"""The date that archives of these files bear."""
WHEEL = "Wheel-Version: 1.0\nGenerator: twoheads\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """Writes ``twoheads-VERSION-py3-none-any.whl`` into ``folder``.

    Raises:
        InputError: Nothing tells the version and requirements of this project here.
    """
    try:
        about = importlib.metadata.distribution("twoheads")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "the wheel", "can't be made: twoheads is not installed here", "pip install twoheads"
        ) from error
    metadata, commands = _metadata(about.read_text("METADATA") or ""), about.read_text("entry_points.txt")
    name = f"twoheads-{about.version}"
    files = {**_sources(), f"{name}.dist-info/METADATA": metadata.encode()}
    files |= {
        f"{name}.dist-info/WHEEL": WHEEL.encode(),
        f"{name}.dist-info/entry_points.txt": (commands or "").encode(),
    }
    record = f"{name}.dist-info/RECORD"
    lines = [*(f"{file},sha256={_digest(content)},{len(content)}" for file, content in files.items()), f"{record},,"]
    files[record] = ("\n".join(lines) + "\n").encode()
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            entry = zipfile.ZipInfo(file, OLDEST)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return path


def _metadata(installed: str) -> str:
    """What is said of the project, with the requirements of the checkout that it runs from, if it does.

    An installation that points to a checkout says what that required once, and a device would get all of it.
    """
    checkout = Path(str(importlib.import_module("twoheads.export").__file__)).parents[3] / "pyproject.toml"
    if not checkout.is_file():
        return installed
    project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]
    lines = [f"Requires-Dist: {one}" for one in project["dependencies"]]
    for extra, packages in sorted(project["optional-dependencies"].items()):
        lines.append(f"Provides-Extra: {extra}")
        for requirement, _, marker in (one.partition(";") for one in packages):
            condition = f"({marker.strip()}) and extra == '{extra}'" if marker else f"extra == '{extra}'"
            lines.append(f"Requires-Dist: {requirement.strip()}; {condition}")
    head, _, description = installed.partition("\n\n")
    kept = [line for line in head.splitlines() if not line.startswith(("Requires-Dist:", "Provides-Extra:"))]
    return "\n".join([*kept, *lines]) + f"\n\n{description}"


def _sources() -> dict[str, bytes]:
    """Every file of the four packages by its place in the wheel, sorted."""
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        module = importlib.import_module(f"twoheads.{package}")
        folder = Path(str(module.__file__)).parent
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[f"twoheads/{package}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return dict(sorted(found.items()))


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
