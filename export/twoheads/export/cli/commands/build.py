"""``twoheads build``: a bundle's engines through an accelerator's compiler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.accelerators.precisions import LOSSY
from twoheads.export.accelerators.target import load_target
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import (
    print_facts,
    print_json,
    print_table,
    print_warning,
    seconds_text,
    size_text,
)
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.graphs.serialization.bundle_format import SIGNATURE
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.bundle.reader import require_bundle

if TYPE_CHECKING:
    from twoheads.export.accelerators.build import Built
    from twoheads.export.accelerators.loss import Loss

__all__ = ["command"]

UNKNOWN = "not measured, which --allow-loss took: nothing here runs what was built"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """For what to build, and how."""

    target: options.Target
    precision: Annotated[
        options.BuildPrecision | None,
        typer.Option(
            "--precision", help="The number format in which the accelerator multiplies; by default the target's first."
        ),
    ] = None
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Which of the target's devices: CPU, GPU, rk3576, SM120, ..."),
    ] = None
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="The Python of the environment that has the compiler."),
    ] = None
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="For int8, w8 and the like: a text like those that will be run. It tells the ranges of values, and "
            "what the precision costs.",
        ),
    ] = None
    allow_loss: Annotated[
        bool,
        typer.Option(
            "--allow-loss",
            help="Keep the result even if perplexity or hidden states are off by more than 5%, or if nothing tells by "
            "how much.",
        ),
    ] = False
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Run what was built in the compiler's emulator, and compare it with ONNX Runtime."
        ),
    ] = False
    generation: options.WithGeneration = False
    strict: Annotated[bool, typer.Option("--strict", help="Fail if the compiler leaves any node to the host.")] = False
    sign: options.Sign = None
    as_json: options.Json = False


@takes_options
def command(bundle: options.Bundle, asked: BuildOptions) -> None:
    """Build every engine for an accelerator, into the bundle's folder targets/NAME.

    The vendor's compiler runs in an environment of its own (`twoheads targets install NAME`) and needs no accelerator.
    Engines that an equal build made before are kept. If one is refused, nothing is written.

    Example: twoheads build smollm2.bundle --target qnn --check
    In 8 bits: twoheads build minilm.bundle --target ethos-u --calibrate FILE.txt --check
    """
    load_target(asked.target)
    require_bundle(bundle)  # a wrong path is told before anything else
    text = None if asked.calibrate is None else arguments.read_text(asked.calibrate)

    from twoheads.export.accelerators.build import build_target
    from twoheads.export.bundle.signing import read_signing_key

    key = None if asked.sign is None else read_signing_key(asked.sign)
    was_signed = (bundle / SIGNATURE).exists()
    with PhaseProgress() as progress:
        built = build_target(
            bundle,
            asked.target,
            precision=None if asked.precision is None else asked.precision.value,
            device=asked.device,
            python=asked.python,
            calibrate=text,
            check=asked.check,
            strict=asked.strict,
            allow_loss=asked.allow_loss,
            generation=asked.generation,
            sign=key,
            progress=progress,
        )
    if was_signed and key is None:
        print_warning("the bundle has no signature any more: the old one is of the manifest as it was; use --sign KEY")
    if asked.as_json:
        print_json(to_json(built))
    else:
        _print(built, asked.target)


def _print(built: Built, target: str) -> None:
    entry = built.entry
    rows = [
        (
            name,
            size_text(built.sizes[name]),
            seconds_text(artifact.seconds),
            "-" if artifact.error is None else f"{artifact.error:.1e}",
            ", ".join(artifact.off) or "none",
        )
        for name, artifact in entry.artifacts.items()
    ]
    computes = [entry.precision, *([entry.device] if entry.device else [])]
    print_table("", ("engine", ">size", ">time", ">error", "left to the host"), rows)
    print_facts(
        (
            ("", ""),
            (
                "target",
                f"{target} ({entry.compiler} {entry.version}, {', '.join(computes)})",
            ),
            ("artifacts", f"{len(rows)}, of which {built.reused} were kept from before"),
            ("size", size_text(sum(built.sizes.values()))),
            *(() if built.loss is None else (("costs", _cost(built.loss)),)),
            *((("costs", UNKNOWN),) if built.loss is None and entry.precision in LOSSY else ()),
        )
    )
    if off := sum(bool(artifact.off) for artifact in entry.artifacts.values()):
        print_warning(f"{off} engines leave nodes to the host")


def _cost(loss: Loss) -> str:
    """In words, with the length of the run that it was measured on."""
    of = f"{loss.before:.4g} becomes {loss.after:.4g}, " if loss.before else ""
    return f"{loss.measure} {of}{loss.share:+.1%} on {loss.tokens} tokens of the text"
