"""Sweeps the library's tables: ``python -m tools.breadth [--table causal] [--only llama] [--again off]``.

Every type runs in a process of its own with a limit of time and memory. Results are kept in
``docs/results/breadth.json`` as they come, and a second call goes on where the first one ended; the page beside it is
written from them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.breadth.page import render
from tools.breadth.tables import TABLES, Type, types_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "breadth.json"
PAGE = RESULTS.with_suffix(".md")
SECONDS, BYTES = 300, 12 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for and not there yet; returns 1 if a type crashed, was off or disagrees with ``verify``."""
    parser = argparse.ArgumentParser(prog="python -m tools.breadth", description=__doc__)
    parser.add_argument("--table", action="append", choices=sorted(TABLES), help="default: all")
    parser.add_argument("--only", nargs="*", help="types by name; measured again")
    parser.add_argument("--again", nargs="*", help="outcomes to measure again, e.g. refused crash off")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for kind in (kind for table in given.table or TABLES for kind in types_of(table)):
        key = f"{kind.table}/{kind.name}"
        known = found.get(key)
        if kind.name in given.only if given.only else (known is None or known["outcome"] in (given.again or ())):
            found[key] = {"architecture": kind.architecture, **_run(kind)}
            sys.stderr.write(f"{key}: {found[key]['outcome']} {found[key].get('message', '')[:150]}\n")
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(found), encoding="utf-8")
    return 1 if any(row["outcome"] in ("off", "crash") or row.get("verified") is False for row in found.values()) else 0


def _run(kind: Type) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.breadth.child", kind.name, kind.architecture]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, preexec_fn=_limit)
    except subprocess.TimeoutExpired:
        return {"outcome": "crash", "message": f"took more than {SECONDS} s"}
    try:
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"outcome": "crash", "message": f"ended with {done.returncode}: {done.stderr[-300:]}"}
    return row


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


if __name__ == "__main__":
    sys.exit(main())
