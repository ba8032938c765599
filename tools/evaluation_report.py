"""Renders the evaluation's figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.machine import machine_line
from tools.markdown import table

__all__ = ["render"]

TITLES = {
    "smollm2": "SmolLM2-135M: full causal attention",
    "gemma3": "Gemma-3-270M: sliding windows and full attention",
    "minilm": "MiniLM: a bidirectional encoder",
}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _compile_lines(model: dict[str, Any]) -> list[str]:
    compiled, load = model["compile"], model["load_seconds"]
    ratio = compiled["peak_bytes"] / compiled["weights_bytes"]
    return [
        f"- Compiled in {compiled['seconds']:.1f} s for blocks of {compiled['block_size']}: "
        f"{compiled['engines']} engines; peak memory {_megabytes(compiled['peak_bytes'])}, "
        f"{ratio:.2f} times the weights ({_megabytes(compiled['weights_bytes'])}).",
        f"- Loads in {load['full']:.2f} s with every sha256 checked, in {load['size']:.2f} s with sizes only.",
        "",
    ]


def _verify_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "Against the original over the whole sequence (error and noise floor: largest absolute difference; a bundle "
        "passes at 4 times the floor or less; calls are those of the formula and the repeated ones, of rows whose sums "
        "left the safe range):",
        "",
    ]
    headings = ("N", "blocks", "calls", "formula", "repeated", "error", "noise floor", "ratio", "same top 1", "passed")
    return lines + table(
        headings,
        (
            (
                row["length"],
                -(-row["length"] // row["block_size"]),
                row["engine_calls"],
                row["formula_calls"],
                row["repeated_calls"],
                f"{row['max_abs_error']:.2e}",
                f"{row['noise_floor']:.2e}",
                f"{row['max_abs_error'] / row['noise_floor']:.2f}",
                "-" if row["top1_agreement"] is None else f"{row['top1_agreement']:.2%}",
                "yes" if row["passed"] else "**no**",
            )
            for row in rows
        ),
    )


def _run_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"Runs of the runtime alone (output `{rows[0]['output']}`, no torch in the process):", ""]
    headings = ("N", "calls", "formula", "repeated", "seconds", "tokens/s", "GFLOP/s", "peak memory", "planned peak")
    return lines + table(
        headings,
        (
            (
                row["length"],
                row["engine_calls"],
                row["formula_calls"],
                row["repeated_calls"],
                f"{row['seconds']:.2f}",
                f"{row['length'] / row['seconds']:.0f}",
                f"{row['flops'] / row['seconds'] / 1e9:.0f}",
                _megabytes(row["peak_bytes"]),
                _megabytes(row["planned_peak_bytes"]),
            )
            for row in rows
        ),
    )


def _growth_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    masks = list(rows[0]["calls_of_a_layer"])
    lines = ["Attention calls of one layer, by its mask:", ""]
    cells = ((row["length"], row["blocks"], *(row["calls_of_a_layer"][mask] for mask in masks)) for row in rows)
    return lines + table(("N", "blocks", *(f"`{mask}`" for mask in masks)), cells)


def _model_lines(name: str, model: dict[str, Any]) -> list[str]:
    lines = [f"## {TITLES[name]}", "", machine_line(model["machine"]), "", *_compile_lines(model)]
    lines += [*_verify_lines(model["verify"]), *_run_lines(model["run"])]
    if "calls" in model:
        lines += _growth_lines(model["calls"])
    if "digest_before" in model:
        same = model["digest_before"] == model["digest_after"]
        state = "the same before and after, byte for byte" if same else "**different before and after**"
        lines += [f"The bundle's files are {state} (sha256 over all: `{model['digest_after'][:16]}...`).", ""]
    if "refusal" in model:
        refusal = model["refusal"]
        lines += [
            f"{refusal['length']} tokens: exit code {refusal['code']} and",
            "",
            "```",
            refusal["message"],
            "```",
            "",
        ]
    return lines


def render(results: dict[str, Any]) -> str:
    """The Markdown of ``docs/results/evaluation.json``'s contents."""
    lines = [
        "# Evaluation",
        "",
        "Written by `make evaluate` (`python -m tools.evaluate`); the same figures as data are in `evaluation.json`.",
        "One bundle for each model; every measurement is a process of its own. Times are upper bounds: other jobs may "
        "have run meanwhile; `performance.md` compares runs in turns.",
        "",
    ]
    for name in TITLES:
        if name in results["models"]:
            lines += _model_lines(name, results["models"][name])
    return "\n".join(lines).rstrip() + "\n"
