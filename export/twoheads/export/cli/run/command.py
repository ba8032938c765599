"""``twoheads run``: a bundle on one input, with the result streamed to a file."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from twoheads.export.cli.run.arrays import read_arrays, run_arrays
from twoheads.export.cli.run.cluster import cluster_lines, open_cluster
from twoheads.export.cli.run.documents import is_document_folder, resume_documents, run_documents
from twoheads.export.cli.run.job import resume_job, start_job
from twoheads.export.cli.run.lines import print_reports, read_lines, reports_to_json, run_lines
from twoheads.export.cli.run.one_input import has_rows, run_to_file
from twoheads.export.cli.run.sampling_lines import average_lines
from twoheads.export.cli.run.sequence_file import SequenceFile
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import (
    approximations_text,
    calls_text,
    print_facts,
    print_json,
    print_note,
    print_table,
    print_warning,
    seconds_text,
    size_text,
)
from twoheads.export.cli.shared.spill_line import spill_line
from twoheads.graphs.errors import InputError, InternalError
from twoheads.graphs.program.lengths import resolve_lengths, value_rows
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.bundle.reader import read_bundle

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle, Report
    from twoheads.runtime.cluster import Cluster

__all__ = ["NAME", "command"]

NAME = "run"


class Check(StrEnum):
    """How thoroughly a bundle's files are checked before they are used."""

    FULL = "full"
    SIZE = "size"


class Pack(StrEnum):
    """Whether short inputs share the blocks of one run."""

    AUTO = "auto"
    OFF = "off"


def command(
    bundle: options.OptionalBundle = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT", help="The .npz file to write; with --inputs, the folder."),
    ] = None,
    text: options.Text = None,
    tokens: options.Tokens = None,
    arrays: options.Arrays = None,
    inputs: options.Inputs = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut documents of --inputs that the model is too short for.")
    ] = False,
    output: options.OutputOption = None,
    positions: options.Positions = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="R.json", help="Write calls, times and peak memory there.")
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Every line of the text is an input of its own: one row of output each.")
    ] = False,
    pack: Annotated[
        Pack, typer.Option("--pack", help="auto: inputs share the calls of common runs; off: none do.")
    ] = Pack.AUTO,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Blocks in parallel; all cores if not given.")
    ] = None,
    backend: options.BackendOption = options.Backend.ONNXRUNTIME,
    precision: options.PrecisionOption = options.Precision.F32,
    tune: options.TuneOption = options.Tune.OFF,
    memory_limit: options.MemoryLimit = None,
    spill: options.Spill = None,
    device_memory_limit: options.DeviceMemoryLimit = None,
    cluster: options.ClusterAddress = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="DIR", help="Go on with the run that was stopped, from its --spill folder."),
    ] = None,
    check: Annotated[
        Check, typer.Option("--check", help="full: the sha256 of every file; size: sizes only.")
    ] = Check.FULL,
    as_json: options.Json = False,
) -> None:
    """Run a bundle on a text or on tokens of any length and write the result as a .npz file.

    The array is named logits, hidden or embedding, in float32. It is streamed: logits larger than the memory are fine.

    With --input the model reads arrays by name: images, features, an encoder's and a decoder's tokens, a padded batch
    with its attention_mask (rows of padding are 0), or documents in one sequence.

    With --lines the file has one row for each line of the text; lines share the blocks of common runs.

    With --inputs thousands of documents run together, and OUT is a folder: parts of results, and index.jsonl with a
    line for each document, in order, which says where its rows are or why it failed. The same command goes on where it
    was stopped. Exit code 3: all is done, and some documents failed.

    With --memory-limit a run that does not fit is refused before it starts, with what it would need; with --spill its
    largest values go to files until it fits. Of a text or of tokens that folder also keeps checkpoints: after a kill or
    a full disk, `twoheads run --resume DIR` goes on, with the same result to the bit; `twoheads status DIR` looks.

    With --backend cuda or tensorrt values stay in the memory of the GPU; with --device-memory-limit, keys and values
    that do not fit are streamed from the host's.

    With --cluster the blocks of every stage are dealt to the workers of a Ray cluster, with the same result to the bit;
    what a lost worker had computed is computed by others. The bundle must lie in the same folder on every machine.

    Example: twoheads run smollm2.bundle --text book.txt -o out.npz --output last --report report.json
    """
    limit = None if memory_limit is None else arguments.parse_size(memory_limit)
    if resume is not None:
        given = (bundle, out, text, tokens, arrays, inputs, positions, output, spill, cluster)
        if lines or truncate or tune != options.Tune.OFF or any(option is not None for option in given):
            raise InputError("--resume", "knows its bundle, input and output", "give --resume DIR alone")
        if is_document_folder(resume):
            resume_documents(resume, threads=threads, check=check.value, as_json=as_json)
            return
        done, written = resume_job(resume, threads=threads, check=check.value, memory_limit=limit)
        _tell(done, written, report, as_json=as_json)
        return
    if bundle is None or out is None:
        missing = "a BUNDLE" if bundle is None else "--out OUT"
        raise InputError("twoheads run", f"{missing} is missing", "see `twoheads run --help`")
    read_bundle(bundle, check="size", engines=False)  # a wrong path is told before anything else
    arguments.check_output_path(out, folder=inputs is not None)
    if report is not None:
        arguments.check_output_path(report)
    _check_one_input(text, tokens, arrays, inputs)
    single = (lines or None, positions, report, spill, cluster)
    _check_documents(inputs, given=any(option is not None for option in single), truncate=truncate)
    if lines and (text is None or positions is not None or cluster is not None):
        raise InputError("--lines", "takes a --text, no --positions and no --cluster", "leave the other option out")

    from twoheads.runtime import load

    as_job = spill is not None and arrays is None and not lines
    folder = None if as_job else spill
    loaded = load(
        bundle,
        backend=backend.value,
        precision=precision.value,
        threads=threads,
        check=check.value,
        memory_limit=limit,
        spill=folder,
        device_memory_limit=None if device_memory_limit is None else arguments.parse_size(device_memory_limit),
        tune=tune.value,
    )
    if tune != options.Tune.OFF:
        print_note(f"key tiles of {loaded.program.key_tile} tokens, by --tune {tune.value}")
    wanted = output.value if output else loaded.program.default_output
    if inputs is not None:
        run_documents(loaded, inputs, out, as_json=as_json, output=wanted, pack=pack.value, truncate=truncate)
        return
    if lines and text is not None:
        reports = run_lines(loaded, read_lines(text, bundle, loaded), wanted, pack.value, out)
        _tell_lines(reports, out, report, as_json=as_json)
        return
    if arrays is not None and positions is not None:
        raise InputError("--positions", "picks rows of one text or token sequence", "leave it out with --input")
    others = {"--spill": spill, "--memory-limit": memory_limit}
    with open_cluster(cluster, threads=threads, check=check.value, others=others) as workers:
        if arrays is not None:
            done = run_arrays(loaded, read_arrays(arrays), wanted, pack.value, out, workers)
        else:
            source = _sequence_file(text, tokens)
            done = _run_sequence(loaded, source, wanted, positions, spill, out, workers)
    _tell(done, out, report, as_json=as_json)


def _run_sequence(
    loaded: "LoadedBundle",
    source: SequenceFile,
    wanted: str,
    positions: str | None,
    spill: Path | None,
    out: Path,
    cluster: "Cluster | None",
) -> "Report":
    """Runs one text or token sequence into ``out``, with checkpoints where there is a folder for them."""
    sequence = source.read(loaded)
    lengths = resolve_lengths(loaded.program, int(sequence.size))
    count = value_rows(loaded.program.value(loaded.program.hidden), lengths)
    rows = None if positions is None else _parse_rows(positions, loaded.program, wanted, count)
    picked = None if rows is None else int(rows.size)
    schedule = loaded.schedule(lengths, wanted, picked, by_blocks=spill is not None)
    if spill is not None:
        return start_job(spill, loaded, schedule, sequence, rows, out, source=source)
    if loaded.memory_limit is not None:
        print_note(spill_line(loaded.spill_plan(schedule)))
    return run_to_file(loaded, sequence, wanted, count, rows, out, cluster=cluster)


def _tell(done: "Report", out: Path, report: Path | None, *, as_json: bool) -> None:
    for warning in done.warnings:
        print_warning(warning)
    if report is not None:
        _write_report(report, to_json(done))
    if as_json:
        print_json(to_json(done))
    else:
        _print_report(done, out)


def _tell_lines(reports: "tuple[Report, ...]", out: Path, path: Path | None, *, as_json: bool) -> None:
    for warning in dict.fromkeys(warning for report in reports for warning in report.warnings):
        print_warning(warning)
    if path is not None:
        _write_report(path, reports_to_json(reports))
    if as_json:
        print_json(reports_to_json(reports))
    else:
        print_reports(reports, out)


def _check_one_input(*given: Path | None) -> None:
    count = sum(path is not None for path in given)
    if count != 1:
        problem = "two inputs are given" if count else "no input is given"
        fix = "give one of --text FILE, --tokens FILE.npy, --input FILE.npz, --inputs FOLDER"
        raise InputError("twoheads run", problem, fix)


def _check_documents(inputs: Path | None, *, given: bool, truncate: bool) -> None:
    """``given`` says whether an option is given that is for other inputs than documents."""
    if inputs is not None and given:
        fix = "leave out --lines, --positions, --report, --spill and --cluster"
        raise InputError("--inputs", "writes whole results of documents, and its own checkpoints", fix)
    if inputs is None and truncate:
        raise InputError("--truncate", "cuts the documents of --inputs", "leave it out")


def _sequence_file(text: Path | None, tokens: Path | None) -> SequenceFile:
    path = text or tokens
    if path is None:
        raise InternalError("neither --text nor --tokens")
    return SequenceFile(path, is_text=text is not None)


def _parse_rows(positions: str, program: Program, output: str, length: int) -> npt.NDArray[np.int64]:
    if not has_rows(program, output):
        problem = f"picks rows of logits or hidden states, and the output is {output}"
        raise InputError("--positions", problem, "leave it out, or ask for --output logits or --output hidden")
    return arguments.parse_positions(positions, length)


def _write_report(path: Path, data: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise arguments.unwritable(path, error) from None


def _print_report(report: "Report", out: Path) -> None:
    print_facts(
        (
            ("written", f"{out} ({size_text(out.stat().st_size)}), {report.output}"),
            ("length", f"{report.length} tokens in {report.blocks} blocks of {report.block_size}"),
            ("engine calls", calls_text(report.engine_calls, report.formula_calls, report.repeated_calls)),
            ("time", f"{seconds_text(report.seconds)}, {report.length / max(report.seconds, 1e-9):.0f} tokens/s"),
            ("peak memory", size_text(report.peak_bytes)),
            *cluster_lines(report),
            *((("spilled", size_text(report.spilled_bytes)),) if report.spilled_bytes else ()),
            ("precision", report.precision),
            ("approximations", approximations_text(report.approximations, report.precision)),
            *average_lines(report.average),
        )
    )
    totals: dict[str, list[float]] = {}
    for stage in report.stages:
        entry = totals.setdefault(stage.kind, [0, 0, 0.0])
        entry[0] += 1
        entry[1] += stage.calls
        entry[2] += stage.seconds
    rows = [(kind, f"{n:.0f}", f"{calls:.0f}", seconds_text(spent)) for kind, (n, calls, spent) in totals.items()]
    print_table("", ("kind", ">stages", ">calls", ">time"), rows)
