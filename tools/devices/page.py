"""The page about whole journeys."""

from __future__ import annotations

from typing import Any

from tools.devices.rounded import ROUNDING
from tools.machine import machine_letters
from tools.markdown import table
from twoheads.export.accelerators.loss import MOST
from twoheads.export.accelerators.target import load_target, target_names
from twoheads.runtime.backends.emulator import EMULATORS
from twoheads.runtime.backends.onnxruntime_provider import PROVIDERS

__all__ = ["render"]

HEADER = """# From a bundle to a device

Written by `python -m tools.devices`, which goes the whole way of every target whose runtime, or whose emulator, works
on a processor like this one: `compile`, `build`, `pack`, a copy in an empty folder, what the pack's README says to
install in an environment of its own, `twoheads canary`, `./run` on a text. Errors are the norm of the difference from
the original in float32 with torch, as a share of its norm: of MiniLM's hidden states and SmolLM2's logits, over all
tokens. What passes the canary is in brackets. int8 takes its ranges from the end of the text whose beginning is run.
Other jobs may have run meanwhile: times are upper bounds.

"""

HOST = """
The host schedules, hands out masks and copies; merging is inside of the engines. Beyond that, *on the host* counts the
nodes that the compiler's own report leaves to it, and those of parts that are cut off engines because half precision
would garble them (look-ups of tokens, angles of positions). The vendor's emulators compute every call as the chip
would; their times say nothing about a chip.
"""

COSTS = """
## What precisions cost

Every precision of a target that loses something, built by `build --precision NAME --calibrate FILE`, and run on the end
of that text by what the table names: runtimes and emulators, and for Core ML its packages' weights in float32, since
only macOS runs them (`coreml-weights`: what palettes cost, not what a Mac computes). `rounding` is what Qualcomm's
compiler gets, models with whole numbers of 8, 4 and 16 bits, in ONNX Runtime: all that its chip rounds but half
precision. A perplexity that grows by more than 5 %, or hidden states that are off by more, are refused unless
`--allow-loss`. SmolLM2 is a GGUF file of 4 bits (Q4_1): OpenVINO's w4 keeps these numbers, and other forms of 4 bits
round what was rounded before. MiniLM's numbers have 32.
[How weights are rounded](../design/accelerators.md#weights-of-8-and-4-bits).

"""

REFUSED = "`build` refuses it, for it costs {:.1%} on the end of the text; it was taken with `--allow-loss`"

FAKED = """
## What could only be faked

Nothing here has these devices. Their runtimes run whole models in the tests on stand-ins that have the packages' own
signatures and compute with ONNX Runtime: what is proved is the way, not a number of theirs.

"""

UNTRIED = {
    "qnn": "the chip; on x86 this package's library is Qualcomm's emulator, which the table has",
    "rknn": "a board: rknn-toolkit-lite2 is for aarch64; the table has Rockchip's simulator",
    "coreml": "macOS",
    "tensorrt-engine": "an NVIDIA GPU; TensorRT builds only there, too",
    "tensorrt-rtx": "an NVIDIA RTX GPU",
}
"""Backends of artifacts that never met their device: what they lack here."""


def render(figures: dict[str, Any]) -> str:
    """The page of what :mod:`tools.devices` measured."""
    costs = figures.get("costs", [])
    letters, told = machine_letters([one["machine"] for one in (*figures["rows"], *costs)])
    of_rows, of_costs = letters[: len(figures["rows"])], letters[len(figures["rows"]) :]
    lines = [HEADER + told, ""]
    headings = ("target", "runs by", "installed there", "precision", "pack", "canary's error", "error", "same best")
    rows: dict[str, list[tuple[object, ...]]] = {}
    for row, letter in zip(figures["rows"], of_rows, strict=True):
        rows.setdefault(_title(row), []).append((*_cells(row), letter))
    for title, cells in rows.items():
        lines += [f"**{title}**", "", *table((*headings, "calls", "seconds", "on the host", "machine"), cells, left=4)]
    lines.append(HOST)
    for row in figures["rows"]:
        if row.get("refused") is not None:
            lines.append(f"- {row['target']}, {row['model']}: {REFUSED.format(row['refused'])}")
    for failed in figures["failed"]:
        lines.append(f"- {failed['target']}, {failed['model']}: {failed['problem']}")
    if costs:
        numbers = ("artifacts", "measure", "tokens", "float32", "built", "lost")
        columns = ("model", "target", "precision", "measured by", *numbers, "build", "machine")
        lost = [(*_lost(one), letter) for one, letter in zip(costs, of_costs, strict=True)]
        lines.append(COSTS + "\n".join(table(columns, lost, left=4)))
    lines.append(FAKED + "\n".join(table(("backend", "artifacts of", "lacks here"), _faked(), left=3)))
    names = ", ".join(f"`onnxruntime:{name}` ({provider.name})" for name, provider in PROVIDERS.items())
    lines.append(f"The same holds for the bundle's own engines by {names}, and for `openvino:GPU` and `openvino:NPU`.")
    run = {one.target for one in EMULATORS.values()}
    lone = ", ".join(load_target(name).title for name in target_names() if name not in run)
    lines.append(f"\nNothing of ours runs what is built for {lone}, on the device or here, so it is not packed.")
    return "\n".join(lines).rstrip() + "\n"


def _title(row: dict[str, Any]) -> str:
    return f"{row['model']}, {row['tokens']:,} tokens, blocks of {row['block_size']}"


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    target = "the bundle itself" if row["target"] == "none" else row["target"]
    stock = f", {row['lowering']}" if row["lowering"] != "tile" else ""
    canary = "" if row["canary_error"] is None else f"{row['canary_error']:.1e} ({row['canary_limit']:.1e})"
    host = [f"{row['off']} nodes" if row["off"] else "", f"{row['host_parts']} cut off" if row["host_parts"] else ""]
    return (
        target + stock,
        row["backend"],
        ", ".join(row["packages"]),
        row["precision"],
        f"{row['pack_bytes'] / 1e6:.0f} MB",
        canary,
        f"{row['error']:.1e}",
        "" if row["same_best"] is None else f"{row['same_best']:.1%}",
        row["calls"],
        f"{row['seconds']:.1f}" + (" (emulated)" if row["emulated"] else ""),
        ", ".join(filter(None, host)) or "nothing",
    )


def _lost(one: dict[str, Any]) -> tuple[object, ...]:
    """The cells of a target and precision, also where nothing came of it."""
    which = (one["model"], one["target"], one["precision"], one["backend"])
    if one["problem"]:
        return (*which, "", "", "", "", "", "", one["problem"])
    numbers = [f"{one[side]:.2f}" if one["before"] else "" for side in ("before", "after")]
    refused = "refuses" if one["share"] > MOST else "takes it"
    if one["backend"] == ROUNDING:
        refused = "asks the emulator"
    size = f"{one['bytes'] / 1e6:.0f} MB" if one["bytes"] else ""
    return (*which, size, one["measure"], one["tokens"], *numbers, f"{one['share']:+.1%}", refused)


def _faked() -> list[tuple[object, ...]]:
    return [(f"`{name}`", load_target(EMULATORS[name].target).title, lack) for name, lack in UNTRIED.items()]
