"""What ``plan`` is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from twoheads.export.cli.shared import options

__all__ = ["PlanOptions", "ScalingOptions", "SourceOptions"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source would be compiled; of a bundle that is fixed."""

    block_size: Annotated[
        int | None, typer.Option("--block-size", metavar="M", help="For a SOURCE: tokens per block.")
    ] = None
    key_tile: Annotated[
        int | None, typer.Option("--key-tile", metavar="K", help="For a SOURCE: keys of one attention call.")
    ] = None
    attention: options.Attention = "full"
    experts: options.ExpertsOption = options.Experts.AUTO
    lowering: options.LoweringOption = options.Lowering.AUTO
    results: options.Results = None
    masks: options.Masks = None
    trust_remote_code: options.TrustRemoteCode = False


@dataclass(frozen=True, slots=True)
class ScalingOptions:
    """A run on several machines."""

    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="8..1024",
            help="Predict the run on this many machines like that of --device; a range, or a list such as 1,2,8.",
        ),
    ] = None
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", metavar="POLICY", help="With --workers: predict this attention too, e.g. window:4096."
        ),
    ] = None
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="With --workers: draw the table into this file.")
    ] = None


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The run to plan, and what to tell of it."""

    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            "-n",
            metavar="N",
            help="Tokens of the input. Where a model reads several inputs, one length per axis: n=1000,m=300 "
            "(`inspect` names them).",
        ),
    ] = None
    output: options.OutputOption = None
    positions: options.Positions = None
    generate: Annotated[
        int | None,
        typer.Option(
            "--generate",
            min=1,
            metavar="N",
            help="Plan the generation of N new tokens after a prompt of --length tokens.",
        ),
    ] = None
    source: SourceOptions = field(default_factory=SourceOptions)
    every_stage: Annotated[
        bool, typer.Option("--stages", help="Print a line for every stage, not one for all that are alike.")
    ] = False
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="How many blocks to compute at the same time, which decides the memory; one per core by default.",
        ),
    ] = None
    memory_limit: options.MemoryLimit = None
    device: Annotated[
        Path | None,
        typer.Option(
            "--device", metavar="PROFILE.json", help="Predict the time from this file, which `twoheads profile` wrote."
        ),
    ] = None
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    as_json: options.Json = False
