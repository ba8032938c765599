"""The files of this repository that tools name are there: moving a page must not break who reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = (".cache", "demo")
"""Folders that tools make."""


def _named(path: Path) -> list[Path]:
    """What the module names as ``ROOT / "..." / "..."``."""
    chains = re.findall(r'\bROOT((?: / "[\w.-]+")+)', path.read_text(encoding="utf-8"))
    return [Path(*re.findall(r'"([^"]+)"', chain)) for chain in chains]


MODULES = [path for path in sorted((ROOT / "tools").rglob("*.py")) if _named(path)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_tool_names_is_there(module: Path) -> None:
    missing = [name for name in _named(module) if name.parts[0] not in MADE and not (ROOT / name).exists()]
    assert not missing


def test_some_tools_name_files() -> None:
    assert len(MODULES) > 5
