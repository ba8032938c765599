"""Sweeps the library's tables: ``python -m tools.breadth [--table causal] [--only llama] [--again off]``.

Every type runs in a process of its own with a limit of time and memory. Results are kept in
``docs/results/breadth.json`` as they come: a second call goes on where the first one ended, and calls may run at the
same time. The page beside it is written from them. A few types need packages that nothing else does: ``timm`` and
``torchvision`` (Gemma 3n with its towers, DETR).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.breadth.page import render
from tools.breadth.tables import TABLES, Type, types_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "breadth.json"
PAGE = RESULTS.with_suffix(".md")
SECONDS, BYTES = 900, 12 << 30
"""Of a core, and of addresses, for a type."""

PATIENCE = 8
"""Times as long as a type's seconds of a core it may take on a machine that does other things as well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for and not there yet; returns 1 if a type crashed, was off or disagrees with ``verify``."""
    parser = argparse.ArgumentParser(prog="python -m tools.breadth", description=__doc__)
    parser.add_argument("--table", action="append", choices=sorted(TABLES), help="default: all")
    parser.add_argument("--only", nargs="*", help="types by name; measured again")
    parser.add_argument("--again", nargs="*", help="outcomes to measure again, e.g. refused crash off")
    given = parser.parse_args(arguments)
    for kind in (kind for table in given.table or TABLES for kind in types_of(table)):
        key = f"{kind.table}/{kind.name}"
        known = _kept({}).get(key)
        if kind.name in given.only if given.only else (known is None or known["outcome"] in (given.again or ())):
            row = {"architecture": kind.architecture, **_run(kind)}
            _kept({key: row})
            sys.stderr.write(f"{key}: {row['outcome']} {row.get('message', '')[:150]}\n")
    found = _kept({})
    PAGE.write_text(render(found), encoding="utf-8")
    return 1 if any(row["outcome"] in ("off", "crash") or row.get("verified") is False for row in found.values()) else 0


def _kept(more: Mapping[str, Any]) -> dict[str, Any]:
    """All results, with ``more`` of them."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found: dict[str, Any] = {**json.loads(file.read() or "{}"), **more}
        if more:
            file.truncate(0)
            file.write(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    return found


def _run(kind: Type) -> dict[str, Any]:
    """What became of the type, in a process that has the library loaded already."""
    from tools.breadth.child import send_measure  # here, so that the tables are read without torch

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.breadth.warm"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_measure, args=(kind.name, kind.architecture, BYTES, SECONDS, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(PATIENCE * SECONDS):
            return {"outcome": "crash", "message": f"took more than {PATIENCE * SECONDS} s"}
        row: dict[str, Any] = ours.recv()
    except EOFError:
        process.join()
        ended = process.exitcode
        late = ended == -signal.SIGXCPU
        return {"outcome": "crash", "message": f"took more than {SECONDS} s" if late else f"ended with {ended}"}
    finally:
        process.join(1)
        process.kill()
        process.join()
    return row


if __name__ == "__main__":
    sys.exit(main())
