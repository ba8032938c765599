"""``twoheads verify --polygraphy``: engines layer by layer between two backends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from twoheads.export.cli.shared.arguments import check_output_path
from twoheads.export.cli.shared.console import print_facts, print_json, print_table
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.verify.options import Given, LayerOptions
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.bundle.reader import Bundle

if TYPE_CHECKING:
    from twoheads.export.debug.layers import EngineLayers

__all__ = ["verify_layers"]


def verify_layers(bundle: Bundle, asked: LayerOptions, given: Given, *, as_json: bool) -> None:
    """Compares and prints; exits with 1 if a value is beyond the tolerance.

    Raises:
        InputError: A name is unknown, a package is missing, or the input does not fit.
    """
    names = tuple(name.strip() for name in asked.backends.split(","))
    if len(names) != 2 or names[0] == names[1]:
        raise InputError("--backends", f"{asked.backends!r} are not two backends", "give e.g. onnxruntime,openvino")
    if asked.save is not None:
        check_output_path(asked.save, folder=True)

    from twoheads.export.debug.evaluators import find_evaluator
    from twoheads.export.debug.layers import TOLERANCE, check_polygraphy, compare_layers, selected_jobs
    from twoheads.export.engines.recording import record_inputs

    check_polygraphy()
    evaluators = {name: find_evaluator(name) for name in names}
    jobs = selected_jobs(bundle, tuple(asked.engines or ()))
    tolerance = TOLERANCE if asked.tolerance is None else asked.tolerance
    with PhaseProgress() as progress:
        progress("run the bundle")
        recorded = record_inputs(bundle, length=given.length, text=given.text, tokens=given.tokens)
        found = compare_layers(
            bundle,
            jobs,
            evaluators,
            recorded=recorded,
            tolerance=tolerance,
            save=asked.save,
            progress=progress,
        )
    wrong = [layers for layers in found if layers.first is not None or layers.error > tolerance]
    if as_json:
        print_json(to_json(found))
    else:
        _print(found, names, tolerance, len(wrong), asked.save)
    if wrong:
        raise typer.Exit(1)


def _print(
    found: tuple[EngineLayers, ...], names: tuple[str, ...], tolerance: float, wrong: int, save: Path | None
) -> None:
    rows = [
        (
            layers.engine,
            layers.inputs,
            str(layers.nodes),
            f"{layers.error:.1e}",
            "none" if layers.first is None else f"{layers.first.operator} {layers.first.node}",
            f"{layers.worst.error:.1e}",
            f"{layers.worst.operator} {layers.worst.node}",
        )
        for layers in found
    ]
    columns = ("engine", "inputs", ">nodes", ">error of outputs", "first beyond the tolerance", ">worst", "at")
    print_table("", columns, rows)
    print_facts(
        (
            ("", ""),
            ("compared", f"{names[1]} with {names[0]}"),
            ("tolerance", f"{tolerance:g} of a value's largest magnitude"),
            *(() if save is None else (("saved", f"{save}: model.onnx, inputs.json, outputs.json of every engine"),)),
            ("verdict", "passed" if not wrong else f"NOT PASSED: {wrong} of {len(found)} engines"),
        )
    )
