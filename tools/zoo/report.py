"""Renders the coverage table as Markdown."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tools.markdown import table

__all__ = ["render", "versions"]

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")


def versions() -> dict[str, str]:
    """The packages that the table depends on."""
    return {name: version(name) for name in PACKAGES}


def render(data: dict[str, Any]) -> str:
    """The Markdown of ``coverage.json``'s contents."""
    rows: list[dict[str, Any]] = data["rows"]
    exact = [row for row in rows if row["refusal"] is None]
    packages = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    lines = [
        "# Models",
        "",
        "What was compiled and compared with the original, and what is refused; written by `make zoo` "
        "(`python -m tools.zoo`), printed by `twoheads models`. Small random models of every family, blocks of "
        f"{rows[0]['block_size']} tokens. Nothing here is a list of what is allowed: a family that is not listed may "
        "well compile.",
        "",
        f"Made with {packages}.",
        "",
        "*Error* is the largest absolute difference to the original over all lengths and outputs; the *noise floor* is "
        "the difference between two evaluations of the original itself. A bundle passes at 4 times the floor. Engine "
        "calls were equal to the closed formula in every run.",
        "",
    ]
    for door, title in (("torch", "Through torch and transformers"), ("onnx", "Files in ONNX")):
        of_door = [row for row in exact if row["door"] == door]
        lines += [f"## {title}: {len(of_door)}", ""]
        lines += table(
            ("family", "made by", "masks", "outputs", "lengths", "error", "noise floor", "ratio"),
            map(_cells, of_door),
            left=8,
        )
    lines += ["## Refused", ""]
    lines += table(
        ("family", "made by", "message"),
        ((row["family"], row["maker"], row["refusal"]) for row in rows if row["refusal"] is not None),
        left=3,
    )
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["family"],
        row["maker"],
        ", ".join(f"`{mask}`" for mask in row["masks"]),
        ", ".join(row["outputs"]),
        ", ".join(map(str, row["lengths"])),
        f"{row['error']:.1e}",
        f"{row['noise_floor']:.1e}",
        f"{row['ratio']:.1f}",
    )
