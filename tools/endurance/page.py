"""Renders docs/results/kills.md from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["render"]

INTRODUCTION = """# Kills, refusals and long runs

What commands leave when they are killed, when they find no room or no rights, and what a process keeps that runs for
long. A small random Llama, its bundles and inputs; every command in a process of its own, with a folder for its target,
one for temporary files and a home, which are searched afterwards. Faults are listed below each table.
"""

KILLS = """## Killed

`python -m tools.endurance kills COUNT`, moments drawn from a seed: SIGKILL, SIGTERM and SIGINT at a random moment, and
SIGKILL before a random operation on files (open to write, rename, remove, ...), up to three in a row. After each kill,
what stands in the target's place is read in full, all hashes compared: as before, new, or, where a target grows step by
step, a step. Then the next command of the same target runs: it must give the bits of an undisturbed one, and leave no
file, no folder and no process behind.
"""

PLACES = """## No room, no rights

`python -m tools.endurance places` (as root; the commands run as user 65534, with no right but to read files): folders
that belong to somebody else, read-only disks, disks (tmpfs) with room for nothing, for a tenth, for a half and for nine
tenths of what a command writes, a full folder for temporary files, a home that can't be written. *refused*: exit code
1, one error of a line and its fix, no traceback, what was there stays, nothing new is left, and the same command with
room or rights gives the bits of an undisturbed one. *done*: it needs none of it, and gives these bits.
"""

SOAK = """## Long runs

`python -m tools.endurance soak COUNT`: runs of random lengths in one process, every tenth a generation, every
twentieth an input that is refused, with contexts forked and dropped; every result is compared with that of the first
run of the same length, to the bit.
"""


def render(results: Mapping[str, Any]) -> str:
    """The page of all ``results`` there are."""
    parts = [INTRODUCTION]
    for name, text, table in (("kills", KILLS, _kills), ("places", PLACES, _places), ("soak", SOAK, _soak)):
        found: Mapping[str, Any] = results.get(name, {})
        if found:
            parts += [text, _machines(found), table(found), _faults(found)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _machines(found: Mapping[str, Any]) -> str:
    return "On " + "; ".join(dict.fromkeys(f"{row['machine']}, {row['day']}" for row in found.values())) + "."


def _kills(found: Mapping[str, Any]) -> str:
    kinds = ("SIGKILL", "SIGTERM", "SIGINT", "operation")
    lines = [
        f"| command | {' | '.join(kinds)} | stood as before | new | a step | finished, same bits | faults |",
        "|---" + "|--:" * 9 + "|",
    ]
    for name, row in found.items():
        cells = [*(row["kills"].get(kind, 0) for kind in kinds)]
        cells += [row["stood"].get(state, 0) for state in ("as before", "new", "a step")]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {row['finished']} | {len(row['faults'])} |")
    total = sum(sum(row["kills"].values()) for row in found.values())
    return "\n".join([*lines, "", f"{total} kills."])


def _places(found: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(place for row in found.values() for place in row["places"]))
    lines = [f"| command | {' | '.join(names)} | faults |", "|---" * (len(names) + 1) + "|--:|"]
    for name, row in found.items():
        cells = " | ".join(row["places"].get(place, "") for place in names)
        lines.append(f"| {name} | {cells} | {len(row['faults'])} |")
    said = [f"    {line}" for line in dict.fromkeys(line for row in found.values() for line in row["said"])]
    return "\n".join([*lines, "", "What was said, each once:", "", *said])


def _soak(found: Mapping[str, Any]) -> str:
    row = found["runs"]
    samples = [
        f"| {sample['runs']:,} | {sample['resident'] / 1e6:.1f} | {sample['descriptors']} |"
        for sample in row["samples"]
    ]
    counts = ", ".join(f"{count:,} {what}" for what, count in row["counts"].items())
    return "\n".join(
        [
            f"{counts}; {row['seconds']:.0f} s. From run {row['warm']:,} on, resident memory grows by "
            f"{row['slope']:.0f} bytes a run.",
            "",
            "| runs | resident, MB | descriptors |",
            "|--:|--:|--:|",
            *samples,
        ]
    )


def _faults(found: Mapping[str, Any]) -> str:
    faults = [f"* {name}: {fault}" for name, row in found.items() for fault in row["faults"]]
    return "\n".join(["Faults:", "", *faults]) if faults else "No faults."
