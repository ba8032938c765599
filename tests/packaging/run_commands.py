"""Runs command lines of ``twoheads``, each group of them in a process of its own: ``run_commands.py GROUPS.json OUT``.

The file holds a list of groups: a folder with what else is installed for it, and pairs, a folder to run in and words.
In ``OUT``, ``0.json`` gets an exit code and what was printed for each pair of the first group, and so on.

Each process is forked off one that has imported what takes seconds, and has computed nothing: so it has no threads.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from twoheads.export.cli import main
from twoheads.runtime.measurement import engine_meter, step_meter

SLOW = ("transformers.models.llama.modeling_llama", "torch.export", "torch.onnx", "onnxscript", "onnxruntime")
"""Modules that most commands of a page import, with what these import."""


def run(folder: str, words: list[str]) -> tuple[int, str]:
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(words)
    return code, printed.getvalue()


def fork(more: str, asked: list[tuple[str, list[str]]], out: Path) -> None:
    """One group; its process ends without what the interpreter does at its end, which the first one is to do.

    Raises:
        SystemExit: It failed.
    """
    child = os.fork()
    if child:
        if status := os.waitpid(child, 0)[1]:
            raise SystemExit(f"the process for {more} ended with {status}")
        return
    failed = 1
    try:
        sys.path.append(more)
        out.write_text(json.dumps([run(folder, words) for folder, words in asked]), encoding="utf-8")
        failed = 0
    finally:
        if failed:
            traceback.print_exc()
        os._exit(failed)


if __name__ == "__main__":
    engine_meter.MEASURE_SECONDS = step_meter.MEASURE_SECONDS = 0.0  # nobody reads the times of `profile`
    groups = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for name in SLOW:
        import_module(name)
    for number, (more, asked) in enumerate(groups):
        fork(more, asked, Path(sys.argv[2], f"{number}.json"))
