"""A vendor's compiler as a process of its own, in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from twoheads.export.accelerators.target import Target
from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.emulator import environment_of

__all__ = ["Compiler", "Outcome", "find_compiler", "run_compiler"]

LONGEST_ERROR = 300
"""Characters of a compiler's message that are repeated."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler that was found: the Python that has it, its name and version."""

    python: Path
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a compiler answered for one engine.

    Attributes:
        error: Its message if it refused the engine.
        off: Nodes left to the host, as ``operator node``.
        seconds: How long it took.
        crashed: Whether its process ended instead of answering.
    """

    error: str | None
    off: tuple[str, ...]
    seconds: float
    crashed: bool = False


def find_compiler(
    target: Target, python: Path | None = None, device: str | None = None, *, fix: str | None = None
) -> Compiler:
    """The target's compiler in the environment of ``python``, in one kept for it, or in this one.

    Args:
        target: Whose compiler.
        python: That of an environment, if one is named.
        device: What it has to be able to build for.
        fix: What to do where it is not installed, if not to install it.

    Raises:
        InputError: It is not installed there; the fix says how to. Or it can't build for ``device`` there.
    """
    kept = environment_of(target.name)
    chosen = (python and python.absolute()) or (kept / "bin" / "python" if kept.exists() else Path(sys.executable))
    if not chosen.exists():
        raise InputError("--python", f"{chosen} does not exist", "name the python of an environment")
    with as_file(files("twoheads.export.accelerators") / "vendors") as folder:
        found = _run([str(chosen), str(folder / "harness.py"), target.module, device or ""], None)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no message"])[-1]
        packages = " ".join(f"'{package}'" if "<" in package else package for package in target.packages)
        into = f"twoheads targets install {target.name}" if python is None else f"{chosen} -m pip install {packages}"
        problem = f"its compiler can't be used in {chosen} ({reason})"
        raise InputError(f"target {target.name}", problem, fix or into)
    identity = json.loads(found.stdout.strip().splitlines()[-1])
    if identity["missing"]:
        others = f", or for another device: {', '.join(target.devices)}" if target.devices else ""
        where = f"--device {device}" if device else f"target {target.name}"
        raise InputError(where, identity["missing"], f"build where it is{others}")
    return Compiler(chosen, identity["name"], identity["version"])


def run_compiler(
    target: Target,
    compiler: Compiler,
    requests: Sequence[dict[str, Any]],
    scratch: Path,
    progress: Callable[[int], None],
) -> dict[str, Outcome]:
    """Builds all ``requests`` (see the harness) and returns the outcomes by name.

    Args:
        target: What to build for.
        compiler: What builds.
        requests: What to build.
        scratch: A folder for what the two processes tell each other.
        progress: Called with the number of engines done when the compiler's process ends.
    """
    outcomes: dict[str, Outcome] = {}
    pending = list(requests)
    while pending:
        code = _attempt(target, compiler, pending, scratch)
        outcomes |= _read_outcomes(scratch / "reports.jsonl")
        left = [request for request in pending if request["name"] not in outcomes]
        if left:  # the process is gone, and the first engine without a report was its end
            outcomes[left[0]["name"]] = Outcome(f"the compiler ended with {code} and no message", (), 0.0, crashed=True)
        pending = left[1:]
        progress(len(requests) - len(pending))
    return outcomes


def _attempt(target: Target, compiler: Compiler, requests: Sequence[dict[str, Any]], scratch: Path) -> int:
    (scratch / "requests.json").write_text(json.dumps(list(requests)), encoding="utf-8")
    (scratch / "reports.jsonl").unlink(missing_ok=True)
    files_of_both = [str(scratch / "requests.json"), str(scratch / "reports.jsonl")]
    with as_file(files("twoheads.export.accelerators") / "vendors") as folder:
        command = [str(compiler.python), str(folder / "harness.py"), target.module, *files_of_both]
        return _run(command, scratch).returncode


def _run(command: list[str], folder: Path | None) -> subprocess.CompletedProcess[str]:
    # The checkout's path must not give another environment's packages to the compiler.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["TWOHEADS_PARENT"] = str(os.getpid())  # without which the compiler could miss that this process ends
    # Some compilers leave files where they are started, so that is the scratch folder.
    return subprocess.run(  # noqa: S603 - the environment's own Python, with our own program
        command, cwd=folder, capture_output=True, text=True, errors="replace", env=environment, check=False
    )


def _read_outcomes(path: Path) -> dict[str, Outcome]:
    if not path.exists():
        return {}
    reports = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        report["name"]: Outcome(_shorten(report["error"]), tuple(report["off"]), report["seconds"])
        for report in reports
    }


def _shorten(error: str | None) -> str | None:
    """The last line of a message, which is where compilers say what is wrong."""
    if error is None:
        return None
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", error).splitlines() if line.strip()]
    return (lines or ["no message"])[-1][:LONGEST_ERROR]
