"""``twoheads verify``: a bundle against the model it was compiled from, or its engines between two backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_json, print_warning
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.cli.verify.generation import check_pages, verify_steps
from twoheads.export.cli.verify.layers import verify_layers
from twoheads.export.cli.verify.options import VerifyOptions
from twoheads.export.cli.verify.report import print_report
from twoheads.export.cli.verify.streamed import verify_layer_by_layer
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import read_bundle

if TYPE_CHECKING:
    from twoheads.export import VerifyReport

__all__ = ["command"]


@takes_options
def command(bundle: options.Bundle, asked: VerifyOptions) -> None:
    """Run the bundle and the original model on the same input and compare them. Exit code 1: the bundle fails.

    The measure is the noise floor: how far direct evaluations of the original differ from each other. A bundle passes
    if its error is at most 4 times that. One of a lower precision (compile --weights int8, --dtype) is compared twice:
    in float32 with an original of the same rounded weights, by that rule; and as it runs, where rounding may change the
    hidden states by at most 5 % (10 % with compile --weights int8 --products int8). The report also says what the
    precision costs against the original in float32.

    Without --length, the whole text or all tokens and arrays are run. Images have a fixed size and no length.

    With --target, what `twoheads build` made for that accelerator runs in its emulator (qnn, rknn, onnxruntime: the
    engines that the compiler got, not the device), and the report says how far it is from the original.

    With --streamed, neither model is held in memory: each layer of the original reads the bundle's values before it.

    With --polygraphy, no original is needed: two backends compute the values inside the engines, from the inputs of a
    run. Backends: onnxruntime, onnxruntime-plain (not optimised), openvino, reference (ONNX's own), tensorrt.

    Example: twoheads verify smollm2.bundle --against SmolLM2-135M.gguf --length 4096
    twoheads verify minilm.bundle --against minilm --text FILE --length 500 --target onnxruntime
    twoheads verify smollm2.bundle --against SmolLM2-135M.gguf --length 300 --streamed
    twoheads verify smollm2.bundle --polygraphy --backends onnxruntime,openvino
    """
    check_pages(asked)
    loaded = read_bundle(bundle, check="size", engines=False)
    if asked.streamed:
        verify_layer_by_layer(bundle, asked, asked.given.read(loaded.program))
        return
    if asked.against is None and not asked.layers.polygraphy:
        fix = "give either --against SOURCE or --polygraphy"
        raise InputError("twoheads verify", "nothing to compare with is given", fix)
    given = asked.given.read(loaded.program, needed=asked.against is not None)
    if asked.against is None:
        verify_layers(loaded, asked.layers, given, as_json=asked.as_json)
        return
    arguments.require_path(asked.against, "the model the bundle was compiled from")
    if asked.generate is not None:
        verify_steps(bundle, asked, given)
        return
    from twoheads.export import verify

    with PhaseProgress() as progress:
        report = verify(
            bundle,
            asked.against,
            length=given.length,
            text=given.text,
            tokens=given.tokens,
            results=asked.results or (),
            masks=arguments.parse_masks(asked.masks),
            progress=progress,
            backend=asked.backend,
            precision=asked.precision.value,
            target=asked.target,
            trust_remote_code=asked.trust_remote_code,
        )
    _tell(report, as_json=asked.as_json)
    if not report.passed:
        raise typer.Exit(1)


def _tell(report: VerifyReport, *, as_json: bool) -> None:
    for warning in report.warnings:
        print_warning(warning)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
