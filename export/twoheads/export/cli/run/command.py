"""``twoheads run``: a bundle on one input, with the result streamed to a file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer

from twoheads.export.cli.run.arrays import read_arrays, run_arrays
from twoheads.export.cli.run.cluster import open_cluster
from twoheads.export.cli.run.job import start_job
from twoheads.export.cli.run.one_input import run_to_file
from twoheads.export.cli.run.report import tell_run
from twoheads.export.cli.run.sequence_file import SequenceFile
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_note
from twoheads.export.cli.shared.load_options import LoadOptions, Pack, PackOption
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.export.cli.shared.spill_line import spill_line
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import resolve_lengths, value_rows
from twoheads.graphs.program.program import Program
from twoheads.runtime.bundle.reader import require_bundle

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle, Report
    from twoheads.runtime.cluster import Cluster

__all__ = ["RunOptions", "command"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run on, what to compute, and where it goes."""

    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT.npz", help="The file to write.")]
    text: options.Text = None
    tokens: options.Tokens = None
    arrays: options.Arrays = None
    output: options.OutputOption = None
    positions: options.Positions = None
    report: options.ReportFile = None
    pack: PackOption = Pack.AUTO
    spill: options.Spill = None
    cluster: options.ClusterAddress = None
    load: LoadOptions = field(default_factory=LoadOptions)
    as_json: options.Json = False

    @property
    def inputs(self) -> dict[str, Path | None]:
        """What it reads, by option."""
        return {"--text": self.text, "--tokens": self.tokens, "--input": self.arrays}

    @property
    def source(self) -> SequenceFile | Path:
        """The text or the token numbers, or the file of arrays.

        Raises:
            InputError: No input is given.
        """
        path = self.text or self.tokens
        if path is not None:
            return SequenceFile(path, is_text=self.text is not None)
        if self.arrays is not None:
            return self.arrays
        fix = "give one of --text FILE, --tokens FILE.npy, --input FILE.npz"
        raise InputError("twoheads run", "no input is given", fix)


@takes_options
def command(bundle: options.Bundle, asked: RunOptions) -> None:
    """Run a bundle on one input of any length and write the result to a .npz file.

    The array is named logits, hidden or embedding, in float32. It is written as it is computed, so it may be larger
    than the memory.

    With --input the model reads arrays by name: images, features, an encoder's and a decoder's tokens, a padded batch
    with its attention_mask (rows of padding are 0), or documents in one sequence.

    With --memory-limit, a run that does not fit is refused before it starts, with what it would need. With --spill DIR
    as well, its largest values go to files until it fits, and the folder keeps checkpoints of a text or of tokens:
    after a kill or a full disk, `twoheads resume DIR` continues, with the same result to the bit; `twoheads status DIR`
    shows how far it is.

    With --backend cuda or tensorrt, values stay in GPU memory; with --device-memory-limit, keys and values that do not
    fit are streamed from host memory, and weights that do not fit even so, stage by stage.

    With --cluster, the workers of a Ray cluster share the blocks of every stage, with the same result to the bit; what
    a lost worker had computed, others compute again. The bundle must be in the same folder on every machine. There,
    --memory-limit is that of each worker.

    For many texts in one command, see `twoheads batch`.

    Example: twoheads run smollm2.bundle --text book.txt -o out.npz --output last --report report.json
    """
    require_bundle(bundle)  # a wrong path is told before anything else
    asked = replace(asked, **arguments.check_outputs(asked.out, asked.report, asked.inputs))
    source = asked.source
    loaded = asked.load.load(bundle, spill=asked.spill if isinstance(source, Path) else None)
    wanted = asked.output.value if asked.output else loaded.program.default_output
    with open_cluster(asked.cluster, threads=asked.load.threads, check=asked.load.check.value) as workers:
        if isinstance(source, Path):
            done = run_arrays(loaded, read_arrays(source), wanted, asked.pack.value, asked.out, workers)
        else:
            done = _run_sequence(loaded, source, wanted, asked, workers)
    tell_run(done, asked.out, asked.report, as_json=asked.as_json)


def _run_sequence(
    loaded: LoadedBundle, source: SequenceFile, wanted: str, asked: RunOptions, cluster: Cluster | None
) -> Report:
    """Runs one text or token sequence, with checkpoints where there is a folder for them."""
    sequence = source.read(loaded)
    lengths = resolve_lengths(loaded.program, int(sequence.size))
    count = value_rows(loaded.program.value(loaded.program.hidden), lengths)
    rows = None if asked.positions is None else _parse_rows(asked.positions, loaded.program, wanted, count)
    picked = None if rows is None else int(rows.size)
    schedule = loaded.schedule(lengths, wanted, picked, by_blocks=asked.spill is not None)
    if asked.spill is not None:
        return start_job(asked.spill, loaded, schedule, sequence, rows, asked.out, source=source)
    if loaded.memory_limit is not None:
        held = None if cluster is None else cluster.held_bytes(schedule)
        print_note(spill_line(loaded.spill_plan(schedule, held=held), schedule))
    return run_to_file(loaded, sequence, wanted, count, rows, asked.out, cluster=cluster)


def _parse_rows(positions: str, program: Program, output: str, length: int) -> npt.NDArray[np.int64]:
    if program.row_value(output) is None:
        problem = f"picks rows of logits or hidden states, and the output is {output}"
        raise InputError("--positions", problem, "leave it out, or ask for --output logits or --output hidden")
    return arguments.parse_positions(positions, length)
