"""Which package may import which: the arrows of ARCHITECTURE.md, checked in the source text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ALLOWED = {
    "graphs": {"graphs"},
    "compiler": {"compiler", "graphs"},
    "runtime": {"runtime", "graphs"},
    "export": {"export", "compiler", "runtime", "graphs"},
}
HEAVY = {"accelerate", "gguf", "onnx", "onnx_ir", "onnxscript", "rich", "safetensors", "torch", "transformers", "typer"}


def _imports(folder: str) -> Iterator[tuple[Path, int, str]]:
    """Every module imported anywhere in ``folder``, also inside functions: file, line, dotted name."""
    for path in sorted((ROOT / folder / "twoheads").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                assert node.module is not None
                # `from twoheads import runtime` imports the package twoheads.runtime.
                names = (
                    [f"twoheads.{alias.name}" for alias in node.names] if node.module == "twoheads" else [node.module]
                )
                yield from ((path, node.lineno, name) for name in names)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_packages_import_only_what_they_may(folder):
    seen = 0
    for path, line, name in _imports(folder):
        parts = name.split(".")
        if parts[0] == "twoheads":
            seen += 1
            assert parts[1] in ALLOWED[folder], f"{path}:{line}: {folder} must not import {name}"
    assert seen, f"{folder} imports nothing of ours, not even itself: is the path right?"


@pytest.mark.parametrize("folder", ["graphs", "runtime"])
def test_what_runs_on_the_edge_needs_no_toolchain(folder):
    for path, line, name in _imports(folder):
        assert name.split(".")[0] not in HEAVY, f"{path}:{line}: {folder} must not import {name}"


def test_nobody_imports_the_tests_or_tools():
    for folder in ALLOWED:
        for path, line, name in _imports(folder):
            assert name.split(".")[0] not in ("tests", "tools"), f"{path}:{line}: imports {name}"
