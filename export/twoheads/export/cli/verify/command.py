"""``twoheads verify``: a bundle against the model it was compiled from, or its engines between two backends."""

from pathlib import Path
from typing import Annotated, Any

import numpy.typing as npt
import typer

from twoheads.export.cli.run.arrays import read_arrays
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_json, print_warning
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.verify.layers import LayerOptions, verify_layers
from twoheads.export.cli.verify.report import print_report
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.inputs.arrays import given_arrays

__all__ = ["NAME", "command"]

NAME = "verify"


def command(
    bundle: options.Bundle,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="SOURCE", help="The model it was compiled from.")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option("--length", "-n", metavar="N", help="Tokens to run both on; of several inputs: n=1000,m=300."),
    ] = None,
    text: options.Text = None,
    tokens: options.Tokens = None,
    arrays: Annotated[
        Path | None, typer.Option("--input", metavar="FILE.npz", help="The input as arrays by name, of one input.")
    ] = None,
    results: options.Results = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.BackendOption = options.Backend.ONNXRUNTIME,
    precision: options.PrecisionOption = options.Precision.F32,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Also run what was built for this accelerator, in its emulator."),
    ] = None,
    polygraphy: Annotated[
        bool, typer.Option("--polygraphy", help="Compare engines layer by layer between two backends instead.")
    ] = False,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="Layer by layer: which; several times for several; else all."),
    ] = None,
    backends: Annotated[
        str, typer.Option("--backends", metavar="A,B", help="Layer by layer: the yardstick and what is compared.")
    ] = "onnxruntime-plain,onnxruntime",
    tolerance: options.Tolerance = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="DIR", help="Layer by layer: Polygraphy's inputs and outputs, and a report."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run the original over the whole sequence and compare; exit with 1 unless the bundle passes.

    The yardstick is the noise floor: how far two direct evaluations of the original differ from each other. A bundle
    passes when its error is at most 4 times that.

    A bundle of a lower precision (compile --weights, --dtype) is compared in two ways. Its engines, computing in
    float32, are held against the original with the same rounded weights, by that same rule; and as it runs, rounding
    may change the hidden states by 5 % at most. What it costs against the original in float32 is told: distance, best
    tokens, and of a language model the perplexity on the text.

    The length is left out where the inputs have a fixed size, such as images, and with --input, whose arrays have one.

    With --target, what `twoheads build` made for that accelerator (see --precision there) runs wholly in its emulator
    (qnn, rknn, onnxruntime: the very engines that its compiler got, not the device), and its distance from the original
    is told.

    With --polygraphy no original is needed: every value inside of the engines, from the inputs of a run, as two
    backends compute it: onnxruntime, onnxruntime-plain (no optimisation), openvino, reference (ONNX's own), tensorrt.

    Example: twoheads verify smollm2.bundle --against SmolLM2-135M.gguf --length 4096

    Example: twoheads verify minilm.bundle --against minilm --text FILE --length 500 --target onnxruntime

    Example: twoheads verify smollm2.bundle --polygraphy --backends onnxruntime,openvino
    """
    loaded = read_bundle(bundle, check="size", engines=False)
    if (against is None) != polygraphy:
        problem = "nothing to compare with is given" if against is None else "two things to compare with are given"
        raise InputError("twoheads verify", problem, "give either --against SOURCE or --polygraphy")
    if sum(given is not None for given in (text, tokens, arrays)) > 1:
        fix = "give one of --text FILE, --tokens FILE.npy and --input FILE.npz"
        raise InputError("twoheads verify", "two inputs are given", fix)
    content = None if text is None else arguments.read_text(text)
    sequence = _read_sequence(tokens, arrays)
    lengths = None if length is None else arguments.parse_lengths(length)
    if arrays is not None and lengths is None:
        lengths = given_arrays(loaded.program, sequence)[0]
    if against is None:
        wanted = LayerOptions(tuple(engines or ()), backends, tolerance, save, as_json)
        verify_layers(loaded, wanted, length=lengths, text=content, tokens=sequence)
        return
    arguments.require_path(against, "the model the bundle was compiled from")

    from twoheads.export import verify

    with PhaseProgress() as progress:
        report = verify(
            bundle,
            against,
            length={} if lengths is None else lengths,
            text=content,
            tokens=sequence,
            results=results or (),
            progress=progress,
            backend=backend.value,
            precision=precision.value,
            target=target,
            trust_remote_code=trust_remote_code,
        )
    for warning in (*report.warnings, *((report.finding,) if report.finding else ())):
        print_warning(warning)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _read_sequence(tokens: Path | None, arrays: Path | None) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]] | None:
    if arrays is not None:
        return read_arrays(arrays)
    return None if tokens is None else arguments.read_tokens(tokens)
