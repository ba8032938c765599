"""What ``verify`` is asked: the input of both sides, single layers, and what to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy.typing as npt
import typer

from twoheads.export.cli.run.arrays import read_arrays
from twoheads.export.cli.shared import arguments, options
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import Program
from twoheads.runtime.inputs.arrays import given_arrays

__all__ = ["Given", "InputOptions", "LayerOptions", "VerifyOptions"]


class Given(NamedTuple):
    """The input: how many tokens, of which text or array; ``None`` where not given."""

    length: int | Mapping[str, int] | None
    text: str | None
    tokens: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What both sides run on."""

    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            "-n",
            metavar="N",
            help="Tokens to run on; by default all of the input. One length per axis: n=1000,m=300.",
        ),
    ] = None
    text: options.Text = None
    tokens: options.Tokens = None
    arrays: Annotated[
        Path | None, typer.Option("--input", metavar="FILE.npz", help="One input, as arrays by name.")
    ] = None

    def read(self, program: Program, *, needed: bool = True) -> Given:
        """What the options name; none of them is an error where an input is ``needed``.

        Raises:
            InputError: A file can't be read, or is not what its option takes; or no input is given.
        """
        if needed and input_axes(program) and {self.length, self.text, self.tokens, self.arrays} == {None}:
            fix = "give one of --text FILE, --tokens FILE.npy, --input FILE.npz, or --length N for an input made here"
            raise InputError("twoheads verify", "no input is given", fix)
        text = None if self.text is None else arguments.read_text(self.text)
        length = None if self.length is None else arguments.parse_lengths(self.length)
        if self.arrays is not None:
            tokens = read_arrays(self.arrays)
            return Given(given_arrays(program, tokens)[0] if length is None else length, text, tokens)
        return Given(length, text, None if self.tokens is None else arguments.read_tokens(self.tokens))


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """What is about single layers."""

    polygraphy: Annotated[
        bool, typer.Option("--polygraphy", help="Instead compare two backends, engine by engine and layer by layer.")
    ] = False
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", metavar="NAME", help="With --polygraphy: compare this engine; may be repeated; by default all."
        ),
    ] = None
    backends: Annotated[
        str,
        typer.Option(
            "--backends", metavar="A,B", help="With --polygraphy: the reference, and the backend to compare with it."
        ),
    ] = "onnxruntime-plain,onnxruntime"
    tolerance: options.Tolerance = None
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="With --polygraphy: write its inputs, its outputs and a report to this folder.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What to compare with, on what input, and how."""

    against: Annotated[
        Path | None, typer.Option("--against", metavar="SOURCE", help="The model it was compiled from.")
    ] = None
    given: InputOptions = field(default_factory=InputOptions)
    results: options.Results = None
    masks: options.Masks = None
    trust_remote_code: options.TrustRemoteCode = False
    backend: options.BackendOption = options.DEFAULT_BACKEND
    precision: options.PrecisionOption = options.Precision.F32
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Also run what was built for this accelerator in its emulator."),
    ] = None
    generate: Annotated[
        int | None,
        typer.Option(
            "--generate", min=2, metavar="N", help="Also generate N tokens after the input, and compare every step."
        ),
    ] = None
    streamed: Annotated[
        bool,
        typer.Option("--streamed", help="Compare layer by layer, without holding either model in memory."),
    ] = False
    pages: Annotated[
        str | None,
        typer.Option("--pages", metavar="<int8|int8-steps>", help="With --generate: keep keys and values in 8 bits."),
    ] = None
    layers: LayerOptions = field(default_factory=LayerOptions)
    as_json: options.Json = False
