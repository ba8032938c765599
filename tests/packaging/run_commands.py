"""Runs command lines of ``twoheads`` one after the other in one process: ``run_commands.py LINES.json OUT.json``.

The first file holds a list of pairs, a folder to run in and words; the other gets an exit code and what was printed for
each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

from twoheads.export.cli import main


def run(folder: str, words: list[str]) -> tuple[int, str]:
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(words)
    return code, printed.getvalue()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    done = [run(folder, words) for folder, words in asked]
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(done, file)
