"""``twoheads inspect``: what a bundle holds."""

from __future__ import annotations

from typing import Annotated

import typer

from twoheads.export.cli.inspect.facts import engines_of
from twoheads.export.cli.inspect.fold_program import fold_program
from twoheads.export.cli.inspect.json_form import bundle_to_json
from twoheads.export.cli.inspect.summary import engine_signature, print_summary
from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import (
    print_json,
    print_table,
    print_text,
)
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import (
    Program,
)
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["command"]


def command(
    bundle: options.Bundle,
    program: Annotated[bool, typer.Option("--program", help="Print the block program, equal layers once.")] = False,
    every_stage: Annotated[
        bool, typer.Option("--stages", help="With --program: print every stage, equal ones too.")
    ] = False,
    engines: Annotated[bool, typer.Option("--engines", help="Print the signature of every engine.")] = False,
    as_json: options.Json = False,
) -> None:
    """Describe a bundle: its source, its sizes, the masks of its layers, its limits, its engines.

    Example: twoheads inspect smollm2.bundle --program
    """
    loaded = read_bundle(bundle, check="size", engines=False)
    if as_json:
        print_json(bundle_to_json(bundle, loaded.manifest, loaded.program, program_text=program))
        return
    print_summary(bundle, loaded.manifest, loaded.program)
    if engines:
        declared = engines_of(loaded.manifest, loaded.program)
        print_table("\nengines", ("engine", "inputs", "outputs", "weights"), map(engine_signature, declared))
    if program:
        _print_program(loaded.program, every_stage=every_stage)
        for steps in (loaded.fused.steps, loaded.fused.model):
            if steps is not None:
                print_text(f"\n# what single inputs run (lowering {loaded.manifest.lowering})")
                _print_program(steps, every_stage=every_stage)


def _print_program(program: Program, *, every_stage: bool) -> None:
    text = print_program(program)
    print_text("\n" + (text if every_stage else fold_program(text)))
