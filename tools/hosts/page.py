"""The page about one file in other hosts."""

from __future__ import annotations

from typing import Any

from tools.machine import machine_line
from tools.markdown import table

__all__ = ["render"]

HEADER = """# One file in other hosts

Written by `python -m tools.hosts`: `twoheads export` writes one ONNX file, which runs at three lengths in hosts that
have ONNX Runtime and nothing of ours. An error is the largest distance from the original with torch, as a share of the
largest magnitude; the *floor* is the same between two ways to compute the original itself. Seconds are of the first run
after the file is open, in a process of its own; in Chromium one page runs all three. Each host has its own build of
ONNX Runtime (Debian's C++ library is version 1.21) and its own number of threads (WASM here one). Other
jobs may have run meanwhile: times are upper bounds.

"""
FOOTER = """\
WebGPU ran on Chromium's software in the place of a GPU: its numbers count, its times do not (they are of 2 cores of an
Intel Xeon with other jobs, on 2026-11-29). A file whose weights lie beside it runs on the web below 2 GB; beyond that,
use C++, Node or Python. The runtime keeps memory limits, checkpoints and reports, and packs short inputs: export for
hosts without Python.

A file of `export --step` takes what is kept and gives it back with a token more, so it copies all of it each step.
A step of SmolLM2 (blocks of 256, 2 threads) took 32 ms behind 257 tokens, the runtime's 33, and 39 ms behind 1,024,
the runtime's 25. Generate behind thousands of tokens with the runtime.
"""


def render(figures: dict[str, Any]) -> str:
    """The page of what :mod:`tools.hosts` measured."""
    lines = [HEADER + machine_line(figures["machine"]), ""]
    for model, found in figures["models"].items():
        lines += [f"**{model}**, `{found['output']}`, blocks of {found['block_size']}: a file of {_sizes(found)}", ""]
        at = list(found["lengths"])
        lengths = [f"{length:,} tokens" for length in at]
        headings = ("", *(f"error, {length}" for length in lengths), *(f"seconds, {length}" for length in lengths))
        floor = ("floor", *map(_error, found["floor"]), *("" for _ in lengths))
        lines += table(headings, [floor, _row("this runtime", found["runtime"], at), *_rows(found)], left=1)
        told = [(host, of["problem"]) for host, of in found["hosts"].items() if "problem" in of]
        lines += [f"- {host}: {problem}" for host, problem in told] + ([""] if told else [])
    return "\n".join([*lines, FOOTER])


def _sizes(found: dict[str, Any]) -> str:
    inside, beside = found["file_bytes"] / 1e6, found["weights_bytes"] / 1e6
    return f"{inside:.1f} MB" + (f", {beside:.0f} MB of weights beside it" if beside else "")


def _rows(found: dict[str, Any]) -> list[tuple[object, ...]]:
    return [_row(host, of, found["lengths"]) for host, of in found["hosts"].items() if "problem" not in of]


def _row(name: str, of: dict[str, Any], lengths: list[int]) -> tuple[object, ...]:
    """Of a host; what it was not measured at stays empty."""
    measured = of.get("lengths", lengths)
    errors, seconds = (dict(zip(measured, of[what], strict=True)) for what in ("errors", "seconds"))
    told = [_error(errors[at]) if at in errors else "" for at in lengths]
    return (name, *told, *(f"{seconds[at]:.2f}" if at in seconds else "" for at in lengths))


def _error(error: float) -> str:
    return f"{error:.1e}"
