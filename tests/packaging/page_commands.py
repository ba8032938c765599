"""The commands that README and the guides show, and what their pages say to install."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EVERYWHERE", "ROOT", "Page", "pages"]

ROOT = Path(__file__).parents[2]

EVERYWHERE = frozenset({"compile"})
"""Extras of ``twoheads`` that README says to install, and so every page has."""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        name: Its path from the repository's root.
        extras: Of ``twoheads``, that it says to install, with those of :data:`EVERYWHERE`.
        packages: Others that it says to install.
        commands: The command lines of ``twoheads`` in its blocks, in words, without the program's name.
        other: The other lines of these blocks.
    """

    name: str
    extras: frozenset[str]
    packages: frozenset[str]
    commands: tuple[tuple[str, ...], ...]
    other: tuple[str, ...]


def pages() -> list[Page]:
    """README, then every guide."""
    return [_page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md")))]


def _page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    extras, packages = {*EVERYWHERE}, set[str]()
    for line in re.findall(r"pip install ([^`#\n]+)", text):
        for word in shlex.split(line):
            found = re.fullmatch(r"(?:\.|twoheads)(?:\[(.+)\])?", word)
            extras |= set((found[1] or "").split(",")) - {""} if found else set()
            packages |= set() if found else {word}
    lines = list(_lines(text))
    commands = tuple(tuple(shlex.split(line)[1:]) for line in lines if line.startswith("twoheads "))
    other = tuple(line for line in lines if not line.startswith("twoheads "))
    return Page(str(path.relative_to(ROOT)), frozenset(extras), frozenset(packages), commands, other)


def _lines(text: str) -> Iterator[str]:
    """The lines of blocks without a language, without comments; blocks that hold pictures are left out."""
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            plain = re.sub(r"\s#.*", "", line).strip()
            if re.match(r"(twoheads|pip|make|python|openssl|printf|[A-Z]+=)", plain):
                yield plain
