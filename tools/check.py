"""Lint, and the tests of the rooms that changed: ``make check``, for the minutes between two commits.

A room is changed when a file of it, or of its tests, differs from ``main`` (or from the last commit, on ``main``). The
whole gate is ``make test``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["changed_files", "main", "room_tests"]

ROOT = Path(__file__).parent.parent
PACKAGES = ("compiler", "graphs", "export", "runtime")
FIRST_TIER = "not hosts and not targets and not long"
ALWAYS = ("tests/packaging/test_layers.py",)


def _git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()


def changed_files(base: str | None = None) -> list[str]:
    """Files that differ from ``base``, untracked ones among them; by default from where this branch left ``main``."""
    if base is None:
        on_main = _git("branch", "--show-current") == ["main"]
        base = "HEAD" if on_main else _git("merge-base", "HEAD", "main")[0]
    return sorted({*_git("diff", "--name-only", base), *_git("ls-files", "--others", "--exclude-standard")})


def room_tests(files: Iterable[str], root: Path = ROOT) -> list[str]:
    """The test files and folders that the rooms of ``files`` have, as paths below ``root``; each once.

    A module's room is tested by the folder of its name below ``tests/<package>/``; a test file by itself.
    """
    found: list[str] = []
    for name in files:
        parts = Path(name).parts
        if parts[0] == "tests" and Path(name).name.startswith("test_") and (root / name).exists():
            found.append(name)
        elif parts[0] == "tools" and (root / "tests" / "tools").exists():
            found.append("tests/tools")
        elif parts[0] in PACKAGES and name.endswith(".py"):
            folder = root.joinpath("tests", parts[0], *parts[3:-1])
            beside = [folder / f"test_{Path(name).stem}.py"] if len(parts) == 4 else [folder]
            found += [path.relative_to(root).as_posix() for path in beside if path.exists()]
    folders = {name for name in found if not name.endswith(".py")}
    inside = {name for name in found for parent in Path(name).parents if parent.as_posix() in folders}
    return sorted({*found} - inside)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the linters and the tests; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="compare with this commit")
    parser.add_argument("--list", action="store_true", help="only print what would be tested")
    options = parser.parse_args(arguments)
    tests = [*room_tests(changed_files(options.base)), *ALWAYS]
    if options.list:
        print("\n".join(tests))
        return 0
    run = [sys.executable, "-m"]
    commands = (
        [*run, "ruff", "check", "."],
        [*run, "ruff", "format", "--check", "."],
        [*run, "mypy"],
        [*run, "pytest", "-q", "-m", FIRST_TIER, "--numprocesses", "2", "--dist", "worksteal", *tests],
    )
    for command in commands:
        code = subprocess.run(command, check=False, cwd=ROOT).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
