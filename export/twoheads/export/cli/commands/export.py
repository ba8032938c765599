"""``twoheads export``: a bundle as one ONNX file of any length."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_facts, print_json, size_text
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.runtime.bundle.reader import require_bundle

if TYPE_CHECKING:
    from twoheads.export.one_file.export import Exported

__all__ = ["command"]

WeightsOption = Annotated[
    options.WeightsPlace,
    typer.Option(
        "--weights",
        help="Where the weights go: inside the file, beside it in FILE.onnx.data, or (auto) inside up to 256 MB.",
    ),
]
WeightsFile = Annotated[
    str | None,
    typer.Option(
        "--weights-file",
        metavar="NAME",
        help="The name of the file of weights beside; if it exists and holds just these weights, it is shared.",
    ),
]


def command(
    bundle: options.Bundle,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.onnx", help="The file to write.")],
    outputs: Annotated[
        list[options.Output] | None,
        typer.Option(
            "--output",
            help="What the file computes; may be repeated. By default an embedding where the model has one, else "
            "logits; with --step the last logits.",
        ),
    ] = None,
    step: Annotated[
        bool,
        typer.Option(
            "--step",
            help="Write a file for generation: it reads new tokens with the keys and values before them, and gives "
            "these back.",
        ),
    ] = False,
    key_tile: options.KeyTile = None,
    weights: WeightsOption = options.WeightsPlace.AUTO,
    weights_file: WeightsFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a bundle as one ONNX file that takes any length, for hosts that have ONNX Runtime and nothing else.

    The loop over blocks is inside the file, as ONNX control flow around the same fixed-shape engines. Before the file
    gets its name it is compared with the bundle, at a short length and at one of more than a block.

    Example: twoheads export minilm.bundle -o minilm.onnx
    A decoder's next token: twoheads export smollm2.bundle -o smollm2.onnx --output last
    A decoder that generates: twoheads export smollm2.bundle -o smollm2.onnx --step
    """
    require_bundle(bundle)  # a wrong path is told before anything else
    out = arguments.check_output_path(out)

    from twoheads.export.one_file.export import export_one_file

    with PhaseProgress() as progress:
        exported = export_one_file(
            bundle,
            out,
            outputs=[output.value for output in outputs or ()],
            key_tile=key_tile,
            weights=weights.value,
            weights_file=weights_file,
            step=step,
            overwrite=force,
            progress=progress,
        )
    _report(exported, as_json=as_json)


def _report(exported: "Exported", *, as_json: bool) -> None:
    sizes = {str(file): file.stat().st_size for file in (exported.file, exported.weights) if file is not None}
    if as_json:
        print_json(
            {
                "files": sizes,
                "inputs": {name: list(shape) for name, shape in exported.inputs.items()},
                "outputs": {name: list(shape) for name, shape in exported.outputs.items()},
                "key_tile": exported.key_tile,
                "checks": [{"length": check.length, **check.errors} for check in exported.checks],
            }
        )
        return
    ports = ((side, name, shape) for side in ("inputs", "outputs") for name, shape in getattr(exported, side).items())
    print_facts(
        (
            *(
                (("file", "weights")[at], f"{file} ({size_text(size)})")
                for at, (file, size) in enumerate(sizes.items())
            ),
            *((side[:-1], f"{name} [{', '.join(map(str, shape))}]") for side, name, shape in ports),
            ("key tiles", f"{exported.key_tile} tokens"),
            *(
                (f"{check.length} tokens", ", ".join(f"{name} off by {off:.1e}" for name, off in check.errors.items()))
                for check in exported.checks
            ),
        )
    )
