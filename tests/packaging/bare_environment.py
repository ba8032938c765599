"""An environment with just what an install line names, made of files that are installed here: nothing is fetched."""

from __future__ import annotations

import importlib.metadata
import sys
import venv
from collections.abc import Collection
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["link_packages", "make_bare_environment", "packages_of"]


def make_bare_environment(folder: Path, installed: Path, extras: Collection[str] = ()) -> Path:
    """A virtual environment with the project and what it requires; returns its Python.

    Args:
        folder: Where it goes.
        installed: What the project's wheel holds, unpacked: linked, so that Python compiles it once for all.
        extras: Of the project; none for the base install.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for part in installed.iterdir():
        (site / part.name).symlink_to(part)
    link_packages(packages_of(installed, extras), site)
    return folder / "bin" / "python"


def packages_of(installed: Path, extras: Collection[str] = (), more: Collection[str] = ()) -> set[str]:
    """The names of what the project requires with these extras, and of what is installed beside it.

    Args:
        installed: What the project's wheel holds, unpacked.
        extras: Of the project.
        more: Other packages.
    """
    (info,) = installed.glob("twoheads-*.dist-info")
    found: set[str] = set(more)
    for name in more:
        _required(importlib.metadata.distribution(name), found)
    return _required(importlib.metadata.PathDistribution(info), found, extras)


def link_packages(names: Collection[str], site: Path) -> None:
    """Links the files and folders of these packages into a folder that Python imports from."""
    for name in names:
        _link(importlib.metadata.distribution(name), site)


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
