"""``twoheads canary``: whether a pack computes here what it should."""

from pathlib import Path
from typing import Annotated

import typer

from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_facts, print_json, seconds_text

__all__ = ["command"]


def command(
    pack: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `twoheads pack` wrote.")],
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="T", min=1, help="How many calls to run at the same time; one per core by default."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", metavar="NAME", help="What runs the engines, if not the device: the emulator in its place."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run a pack's small input on this device, and compare the result with the one it should have.

    A wrong driver, or a chip that drops a mask, shows at once. Exit code 0: passed; 1: failed.

    Example: twoheads canary smollm2-qnn
    """
    from twoheads.export.pack.canary import run_canary

    run = run_canary(pack, threads, backend)
    canary = run.pack.canary
    if as_json:
        print_json(
            {
                "passed": run.passed,
                "error": run.error,
                "error_where_packed": canary.error,
                "limit": canary.limit,
                "output": canary.output,
                "engine_calls": run.calls,
                "seconds": run.seconds,
            }
        )
    else:
        measured = "not measured" if canary.error is None else f"{canary.error:.1e}"
        print_facts(
            (
                ("canary", "passed" if run.passed else "FAILED"),
                (
                    "error",
                    f"{run.error:.1e} of {canary.output}; where it was packed {measured}, {canary.limit:.1e} passes",
                ),
                ("target", ", ".join(filter(None, (run.pack.target, run.pack.device, run.pack.precision)))),
                ("run", f"{run.calls} engine calls, {seconds_text(run.seconds)}"),
            )
        )
    raise typer.Exit(0 if run.passed else 1)
