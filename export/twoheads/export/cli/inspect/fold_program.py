"""A block program's text with equal layers shown once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

__all__ = ["fold_program"]

VALUE = re.compile(r"%[\w.]+")

MOST_READERS = 4
"""A value that more stages name is one that all layers read, such as sines of positions: it is compared by its name."""


def fold_program(text: str) -> str:
    """The printed program, where stages that repeat are followed by how often they do.

    Stages are equal where they call the same engine with the same mask and shapes, on values that come from as many
    stages before, with weights whose names differ by numbers only.
    """
    entries = _entries(text.splitlines())
    keys = list(_keys(entries))
    lines: list[str] = []
    at = 0
    while at < len(entries):
        period, times = _repetition(keys, at)
        for entry in entries[at : at + period]:
            lines += entry
        at += period * times
        if times > 1:
            last, what = _name(entries[at - 1]), "stage is" if period == 1 else f"{period} stages are"
            lines.append(f"# the last {what} repeated {times - 1} times, up to {last}")
    return "\n".join(lines)


def _entries(lines: Sequence[str]) -> list[list[str]]:
    """Each line with the indented ones that belong to it."""
    entries: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") and entries:
            entries[-1].append(line)
        else:
            entries.append([line])
    return entries


def _name(entry: Sequence[str]) -> str:
    return entry[0].partition(":")[0]


def _keys(entries: Sequence[Sequence[str]]) -> Iterator[str]:
    """What is equal for stages that are alike; of anything else the text, with its place: it is like nothing."""
    made: dict[str, tuple[int, int]] = {}  # value: the entry that makes it, and which of its outputs it is
    readers = Counter(name for entry in entries for name in set(VALUE.findall(entry[0])))
    common = {name for name, count in readers.items() if count > MOST_READERS}
    for place, entry in enumerate(entries):
        kind, _, rest = entry[0].partition(" ")
        _, colon, body = rest.partition(":")
        outputs, equals, call = body.partition(" = ")
        if kind not in ("stage", "head") or not (colon and equals):
            yield f"{place}: {entry[0]}"
            continue
        made |= {name: (place, number) for number, name in enumerate(VALUE.findall(outputs)) if name not in common}
        weights = " ".join(re.sub(r"\d+", "#", line) for line in entry[1:])
        yield f"{kind} {_placed(outputs, place, made)} = {_placed(call, place, made)} {weights}"


def _placed(text: str, place: int, made: dict[str, tuple[int, int]]) -> str:
    """``text`` with values as how many stages before they are made, and which output they are."""

    def spot(found: re.Match[str]) -> str:
        if (source := made.get(found[0])) is None:
            return found[0]
        return f"%{place - source[0]}.{source[1]}"

    return VALUE.sub(spot, text)


def _repetition(keys: Sequence[str], at: int) -> tuple[int, int]:
    """How many entries from ``at`` on repeat how often, so that most are left out; ``(1, 1)`` where none do."""
    best = (1, 1)
    for period in range(1, (len(keys) - at) // 2 + 1):
        group, times = keys[at : at + period], 1
        while keys[at + times * period : at + (times + 1) * period] == group:
            times += 1
        if period * (times - 1) > best[0] * (best[1] - 1):
            best = (period, times)
    return best
