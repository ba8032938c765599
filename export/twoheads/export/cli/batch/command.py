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
        Path, typer.Option("--out", "-o", metavar="OUT", help="Of documents: the folder; of lines: the .npz file.")
    ]
    documents: options.Documents = None
    lines: Annotated[
        Path | None,
        typer.Option("--lines", metavar="FILE.txt", help="A text whose every line is an input of its own."),
    ] = None
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Of --documents: read what links out of the folder point to.")
    ] = False
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut documents that the model is too short for.")] = False
    output: options.OutputOption = None
    report: options.ReportFile = None
    pack: PackOption = Pack.AUTO
    spill: Annotated[
        Path | None, typer.Option("--spill", metavar="DIR", help="Of lines: keep large token values in files there.")
    ] = None
    load: LoadOptions = field(default_factory=LoadOptions)
    as_json: options.Json = False


@takes_options
def command(bundle: options.Bundle, asked: BatchOptions) -> None:
    """Run a bundle on many texts of any lengths; short ones share calls.

    Of --documents OUT is a folder: parts of results, and index.jsonl with a line for each document, in order, which
    says where its rows are or why it failed. The same command continues where it was stopped, as `twoheads resume OUT`
    does; `twoheads status OUT` looks. Exit code 3: all is done, and some documents failed.

    Of --lines OUT is a .npz file with one row of output for each line that is not blank.

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
