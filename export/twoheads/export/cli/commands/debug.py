"""``twoheads debug``: an engine that fails, reduced to the nodes that do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_facts, print_json, print_table, print_text
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.bundle.reader import read_bundle

if TYPE_CHECKING:
    from twoheads.export.debug.cases import Against, Case
    from twoheads.export.debug.find_fault import Fault

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class DebugOptions:
    """What fails where, and how far it is reduced."""

    against: Annotated[
        str,
        typer.Option(
            "--against", metavar="NAME", help="The backend to run engines on, or the target whose compiler to try."
        ),
    ]
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", metavar="NAME", help="Try this engine; may be repeated; by default all, one after the other."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The folder for the reduced model and its files."),
    ] = None
    message: Annotated[
        str,
        typer.Option("--message", metavar="REGEX", help="Count only failures whose message this expression matches."),
    ] = ""
    tolerance: options.Tolerance = None
    precision: Annotated[
        str | None, typer.Option("--precision", help="For a target: fp32, fp16, ...; by default the first that it has.")
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", help="For a target: which of its devices; by default the first.")
    ] = None
    python: Annotated[
        Path | None,
        typer.Option(
            "--python", metavar="PATH", help="For a target: the Python of the environment that has the compiler."
        ),
    ] = None
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE.npz", help="For a FILE.onnx: its inputs; random numbers by default."),
    ] = None
    text: options.Text = None
    as_json: options.Json = False

    @property
    def target(self) -> dict[str, Any]:
        """How the target, if it is one, is compiled for, and what counts as wrong."""
        names = ("precision", "device", "python", "tolerance")
        return {name: getattr(self, name) for name in names}

    def check(self, *, bundled: bool) -> None:
        """Refuses what is wrong before anything runs.

        Raises:
            InputError: An option is for the other kind of source, or is wrong itself.
        """
        if self.output is not None:
            arguments.check_output_path(self.output, folder=True)
        given = (("--inputs", self.inputs is not None and bundled), ("--engine", self.engines and not bundled))
        for option in (option for option, wrong in given if wrong):
            problem = "is for a FILE.onnx" if bundled else "is for a BUNDLE"
            raise InputError(option, problem, f"leave it out, or give a {problem.split()[-1]}")
        try:
            re.compile(self.message)
        except re.error as error:
            raise InputError("--message", f"is no regular expression: {error}", "give e.g. 'not supported'") from None


@takes_options
def command(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|FILE.onnx", help="A bundle, or one model of fixed shapes.")],
    asked: DebugOptions,
) -> None:
    """Find the first engine that fails, and reduce it to the nodes that fail. Exit code 1: one fails.

    An engine fails if it is refused, if it crashes the backend or the compiler, if its numbers are beyond the
    tolerance, or if nodes are left to the host. Nodes are taken out, half of them at a time, until none of the rest can
    be left out and it still fails in the same way. The engine's inputs are those of a run.

    Example: twoheads debug smollm2.bundle --engine tokenwise_0 --against rknn -o fault
    """
    bundled = source.suffix != ".onnx"
    asked.check(bundled=bundled)
    content = None if asked.text is None else arguments.read_text(asked.text)

    from twoheads.export.debug.cases import find_against
    from twoheads.export.debug.find_fault import find_fault, write_fault

    tried = find_against(asked.against, **asked.target)
    cases = _engine_cases(source, tried, asked.engines, content) if bundled else _file_cases(source, asked.inputs)
    names: list[str] = []
    with PhaseProgress() as progress:
        for case in cases:
            names.append(case.name)
            if (found := find_fault(case, tried, message=asked.message, progress=progress)) is not None:
                break
        else:
            _print_none(names, tried, as_json=asked.as_json)
            return
    fault, reduction = found
    again = _command(Path("DIR") if asked.output is None else asked.output, asked.against, asked.target)
    if asked.output is not None:
        write_fault(asked.output, fault, reduction, again)
    if asked.as_json:
        print_json(to_json(fault))
    else:
        _print(fault, again, asked.output)
    raise typer.Exit(1)


def _engine_cases(path: Path, against: Against, names: list[str] | None, text: str | None) -> Iterator[Case]:
    from twoheads.export.accelerators.precisions import PRECISIONS
    from twoheads.export.debug.cases import engine_case
    from twoheads.export.debug.layers import selected_jobs
    from twoheads.export.engines.recording import record_inputs

    bundle = read_bundle(path, check="size")
    jobs = selected_jobs(bundle, names or (), half=PRECISIONS[against.precision].narrow)
    recorded = record_inputs(bundle, text=text)
    cases = (engine_case(bundle, job, against, recorded) for job in jobs)
    return (case for case in cases if case is not None)


def _file_cases(path: Path, inputs: Path | None) -> Iterator[Case]:
    from twoheads.export.debug.cases import file_case

    arguments.require_path(path, "an ONNX file")
    yield file_case(path, inputs)


def _command(folder: Path, against: str, given: Mapping[str, object]) -> str:
    """What shows the fault again, from the files in ``folder``."""
    words = ["twoheads", "debug", str(folder / "reduced.onnx"), "--inputs", str(folder / "inputs.npz")]
    words += ["--against", against]
    for option, value in given.items():
        words += [] if value is None else [f"--{option}", str(value)]
    return shlex.join(words)


def _print_none(names: list[str], against: Against, *, as_json: bool) -> None:
    if as_json:
        print_json(None)
    else:
        print_text(f"nothing fails on {against.title}: {', '.join(names) or 'its host computes all of it'}")


def _print(fault: Fault, again: str, output: Path | None) -> None:
    rows = [(node.operator, node.name, ", ".join(node.inputs), ", ".join(node.outputs)) for node in fault.nodes]
    print_table("", ("operator", "node", "reads", "gives"), rows)
    error = "nothing was computed" if fault.error is None else f"{fault.error:.3g} of the largest magnitude"
    print_facts(
        (
            ("", ""),
            ("fails", f"{fault.kind} by {fault.against}"),
            ("says", fault.reduced_message),
            *((("of all of it", fault.message),) if fault.message != fault.reduced_message else ()),
            ("error", error),
            ("engine", f"{fault.engine}, {len(fault.nodes)} of {fault.nodes_before} nodes, {fault.inputs} inputs"),
            ("called by", ", ".join(fault.callers) or "nobody: a file"),
            ("tried", f"{fault.checks} models"),
            ("again", again if output is not None else "give -o DIR to keep the model and its inputs"),
        )
    )
