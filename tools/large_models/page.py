"""Renders docs/results/large_models.md from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.markdown import table

__all__ = ["render"]

INTRODUCTION = """# Models larger than the memory

Llama-shaped models of random bfloat16 weights, written to safetensors by `tools/large_models`. A row is
`python -m tools.large_models SIZE WEIGHTS --layers L --tokens N --scratch DIR`: one process compiles the model into a
bundle, one runs it with `--memory-limit`, and the hidden states are compared with those of transformers' own layers,
each loaded alone (for quantised weights with the bundle's numbers, expanded). Peaks are resident memory with all
libraries, mapped files included. The largest layer is that of the model in float32. Seconds on the clock grow with
whatever else the machine does; the load is that before the row.
"""

PHASES = """## Where the peak of compiling comes from

Peak of resident memory by phase, in MB, in the order of the work.
"""


def render(results: Mapping[str, Any]) -> str:
    """The page of all ``results`` there are."""
    rows = list(results.values())
    lines = [*INTRODUCTION.splitlines(), ""]
    for machine in dict.fromkeys(f"{row['machine']}, {row['day']}" for row in rows):
        lines += [f"On {machine}.", ""]
    lines += table(_COMPILE, [_compiled(name, row) for name, row in results.items()], left=1)
    ran = [_ran(name, row) for name, row in results.items() if row.get("run_code") == 0]
    if ran:
        lines += ["## Runs", "", *table(_RUN, ran, left=1)]
    names = list(dict.fromkeys(phase for row in rows for phase in row["phases"]))
    peaks = [[name, *(_megabytes(row["phases"].get(name, {}).get("peak_bytes")) for row in rows)] for name in names]
    lines += [*PHASES.splitlines(), "", *table(["phase", *results], peaks, left=1)]
    return "\n".join(lines).rstrip("\n") + "\n"


_COMPILE = (
    "compile",
    "weights in float32 or less, MB",
    "source, MB",
    "largest layer, MB",
    "peak, MB",
    "1.2 layers + 700 MB",
    "seconds",
    "processor seconds",
    "load",
)
_RUN = ("run", "tokens", "limit", "peak, MB", "seconds", "processor seconds", "largest distance, relative")


def _compiled(name: str, row: Mapping[str, Any]) -> list[str]:
    sizes = [_megabytes(row[key]) for key in ("bundle_bytes", "source_bytes", "layer_bytes", "compile_peak_bytes")]
    bound = _megabytes(1.2 * row["layer_bytes"] + 700e6)
    seconds = [f"{row[key]:,.0f}" for key in ("compile_seconds", "compile_cpu_seconds")]
    return [name, *sizes, bound, *seconds, f"{row['load']:.1f}"]


def _ran(name: str, row: Mapping[str, Any]) -> list[str]:
    seconds = [f"{row[key]:,.0f}" for key in ("run_seconds", "run_cpu_seconds")]
    peak = _megabytes(row["run_peak_bytes"])
    return [name, f"{row['tokens']:,}", row["limit"], peak, *seconds, f"{row['distance']:.1e}"]


def _megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f}"
