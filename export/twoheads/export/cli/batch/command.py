"""``twoheads batch``: a bundle on many texts, which share the blocks of common runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from twoheads.export.cli.batch.documents import run_documents
from twoheads.export.cli.batch.lines import read_lines, run_lines, tell_lines
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.load_options import LoadOptions, Pack, PackOption
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import require_bundle

__all__ = ["BatchOptions", "command"]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What to run on, what to compute, and where it goes."""

    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="OUT", help="What to write: a folder for --documents, an .npz file for --lines."
        ),
    ]
    documents: options.Documents = None
    lines: Annotated[
        Path | None,
        typer.Option("--lines", metavar="FILE.txt", help="A text file; every line is an input of its own."),
    ] = None
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links", help="With --documents: also read files that links point to outside of the folder."
        ),
    ] = False
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut documents that are longer than the model takes.")
    ] = False
    output: options.OutputOption = None
    report: options.ReportFile = None
    pack: PackOption = Pack.AUTO
    spill: Annotated[
        Path | None,
        typer.Option("--spill", metavar="DIR", help="With --lines: keep large token values in files in this folder."),
    ] = None
    load: LoadOptions = field(default_factory=LoadOptions)
    as_json: options.Json = False


@takes_options
def command(bundle: options.Bundle, asked: BatchOptions) -> None:
    """Run a bundle on many texts of any lengths; short ones share calls.

    With --documents, OUT is a folder. It holds the results in parts, and index.jsonl with one line per document, in
    order: where its rows are, or why it failed. A run that was stopped continues with the same command or with
    `twoheads resume OUT`; `twoheads status OUT` shows how far it is. Exit code 3: finished, but some documents failed.

    With --lines, OUT is a .npz file with one row of output for each line that is not blank.

    Example: twoheads batch minilm.bundle --documents texts/ -o embeddings/

    Example: twoheads batch smollm2.bundle --lines questions.txt -o out.npz --output last
    """
    require_bundle(bundle)  # a wrong path is told before anything else
    given = {"--documents": asked.documents, "--lines": asked.lines}
    asked = replace(asked, **arguments.check_outputs(asked.out, asked.report, given, folder=asked.lines is None))
    if asked.documents is None and asked.lines is None:
        fix = "give --documents FOLDER or FILE.jsonl, or --lines FILE.txt"
        raise InputError("twoheads batch", "no input is given", fix)
    loaded = asked.load.load(bundle, spill=asked.spill)
    wanted = asked.output.value if asked.output else loaded.program.default_output
    if asked.documents is not None:
        how = {
            "output": wanted,
            "pack": asked.pack.value,
            "truncate": asked.truncate,
            "follow_links": asked.follow_links,
        }
        run_documents(loaded, asked.documents, asked.out, as_json=asked.as_json, **how)
    elif asked.lines is not None:
        inputs = read_lines(asked.lines, bundle, loaded)
        reports = run_lines(loaded, inputs, wanted, asked.pack.value, asked.out)
        tell_lines(reports, asked.out, asked.report, as_json=asked.as_json)
