"""Renders the figures of the attention policies as Markdown."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from tools.markdown import table

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("quality_template.md")


def _split(entries: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Entries named ``subject, length, policy`` as nested dictionaries: subject, policy, length."""
    nested: dict[str, dict[str, dict[str, Any]]] = {}
    for name, value in entries.items():
        *subject, length, policy = name.split(", ")
        nested.setdefault(", ".join(subject), {}).setdefault(policy, {})[length] = value
    return nested


def _lengths(policies: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(length for found in policies.values() for length in found))


def _perplexity(entries: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for text, policies in _split(entries).items():
        lengths = _lengths(policies)
        rows = (
            [f"`{policy}`", *(f"{found[at]:.2f}" if at in found else "" for at in lengths)]
            for policy, found in policies.items()
        )
        lines += table([text, *(f"N = {length}" for length in lengths)], rows, left=1)
    return lines


def _passkeys(entries: dict[str, Any]) -> list[str]:
    policies = _split(entries)[""]
    lengths = _lengths(policies)
    rows = ([f"`{policy}`", *(str(found.get(at, "")) for at in lengths)] for policy, found in policies.items())
    return table(["policy", *(f"N = {length}" for length in lengths)], rows, left=1)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _average(entries: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for subject, policies in entries.items():
        rows = (
            [
                f"`{policy}`",
                str(found["calls"]),
                _number(found["error"]),
                _number(found.get("estimate")),
                _number(found.get("c")),
                _number(found.get("d")),
                _number(found.get("required_keys")),
                str(found.get("sampled_keys", "")),
                "" if "holds" not in found else "yes" if found["holds"] else "no",
            ]
            for policy, found in policies.items()
        )
        headings = (subject, "calls", "error", "estimate", "C", "D", "M required", "M drawn", "theorem holds")
        lines += table(headings, rows, left=1)
    return lines


def render(results: dict[str, Any]) -> str:
    """The document."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    parts = {
        "perplexity": _perplexity(results["perplexity"]),
        "passkey": _passkeys(results["passkey"]),
        "average": _average(results["average"]),
        "machine": [
            f"Measured by `python -m tools.quality` on {machine['cores']} cores of an Intel Xeon",
            f"with AVX-512 ({packages}); the figures are in [approximations.json](approximations.json).",
        ],
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return Template(text).substitute({name: "\n".join(lines).strip() for name, lines in parts.items()})
