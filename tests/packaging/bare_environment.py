"""An environment with just what an install line names, made of files that are installed here: nothing is fetched."""

from __future__ import annotations

import importlib.metadata
import sys
import venv
from collections.abc import Collection
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["make_bare_environment"]


def make_bare_environment(
    folder: Path, installed: Path, extras: Collection[str] = (), more: Collection[str] = ()
) -> Path:
    """A virtual environment with the project and what it requires; returns its Python.

    Args:
        folder: Where it goes.
        installed: What the project's wheel holds, unpacked: linked, so that Python compiles it once for all.
        extras: Of the project; none for the base install.
        more: Other packages to install beside it.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for part in installed.iterdir():
        (site / part.name).symlink_to(part)
    (info,) = site.glob("twoheads-*.dist-info")
    found: set[str] = set(more)
    for name in more:
        _required(importlib.metadata.distribution(name), found)
    for name in _required(importlib.metadata.PathDistribution(info), found, extras):
        _link(importlib.metadata.distribution(name), site)
    return folder / "bin" / "python"


def _required(distribution: importlib.metadata.Distribution, found: set[str], extras: Collection[str] = ()) -> set[str]:
    """``found`` with the names of what the distribution requires for these extras, and what that requires."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if wanted and requirement.name not in found:
            found.add(requirement.name)
            _required(importlib.metadata.distribution(requirement.name), found, requirement.extras)
    return found


def _link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Links the distribution's files and folders that lie directly in site-packages."""
    names = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
    for name in sorted(names):
        target = site / name
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(name))))
