"""Environments of vendors' compilers and runtimes: what is installed where, and how to make one."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from twoheads.export.accelerators.compiler_process import Compiler, find_compiler
from twoheads.export.accelerators.target import Target, load_target, target_names
from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.emulator import EMULATORS, environment_of

__all__ = ["Installed", "install_target", "installed_targets"]

_VERSIONS = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A target as it stands here.

    Attributes:
        target: What is known of it.
        backend: What runs its artifacts on the device, by the name of ``run --backend``; ``None`` if nothing of ours
            does.
        emulator: What runs them in its place on another machine, if anything does.
        environment: The folder kept for it, or ``None`` where there is none and this environment counts.
        versions: Of its packages that are there, by name.
        missing: Its packages that are not.
    """

    target: Target
    backend: str | None
    emulator: str | None
    environment: Path | None
    versions: dict[str, str]
    missing: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether every package is there."""
        return not self.missing


def installed_targets() -> tuple[Installed, ...]:
    """Every target, without starting its compiler."""
    return tuple(_installed(load_target(name)) for name in target_names())


def install_target(name: str) -> Compiler:
    """Makes the environment kept for a target, or completes it, and starts its compiler to see that it is there.

    Raises:
        InputError: There is no such target, pip refuses, or what it installed can't be used here.
    """
    target, folder = load_target(name, "targets install"), environment_of(name)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *target.packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - pip of our own folder
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr.strip()[-300:])
        raise InputError(
            f"target {name}", f"pip can't install it: {said}", f"see what is wrong with: {' '.join(command)}"
        )
    fix = f"its packages are there: see what is wrong with them by {python} -m pip check"
    return find_compiler(target, device=target.devices[0] if target.devices else None, fix=fix)


def _installed(target: Target) -> Installed:
    kept = environment_of(target.name)
    names = tuple(_distribution(package) for package in target.packages)
    python = kept / "bin" / "python"
    found = _versions(python, names) if python.exists() else _here(names)
    backend, emulator = (
        next((name for name, one in EMULATORS.items() if (one.target, one.emulates) == (target.name, emulates)), None)
        for emulates in (False, True)
    )
    missing = tuple(name for name in names if name not in found)
    return Installed(target, backend, emulator, kept if python.exists() else None, found, missing)


def _distribution(package: str) -> str:
    """The name in a requirement such as ``torch==2.7.0``."""
    return re.split(r"[<>=!~\[; ]", package, maxsplit=1)[0]


def _here(names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    if python == Path(sys.executable):
        return _here(names)
    command = [str(python), "-I", "-c", _VERSIONS, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - an environment of ours
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}
