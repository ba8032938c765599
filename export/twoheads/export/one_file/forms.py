"""The two forms of a file: for whole inputs, and for the steps of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx
from onnx import TensorProto

from twoheads.export.one_file.assemble import OneFile
from twoheads.export.one_file.comparison import LengthCheck, check_file
from twoheads.export.one_file.refuse import check_exportable
from twoheads.export.one_file.step_comparison import check_step_file
from twoheads.export.one_file.step_refuse import check_step_exportable
from twoheads.export.one_file.steps.assemble_steps import StepFile
from twoheads.graphs.program.program import Program
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["STEP", "WHOLE", "Form", "Unfinished"]


class Unfinished(Protocol):
    """A model that lacks its weights."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the bundle's weights that it reads."""
        ...

    def model(self, weights: Sequence[TensorProto]) -> onnx.ModelProto:
        """The finished model, with initializers for its weights."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """How a bundle becomes a file.

    Attributes:
        default_output: What the file gives unless told otherwise.
        check: Refuses a bundle, or an output of it, that can't become such a file.
        build: Makes the model, of a bundle, outputs and the width of key tiles.
        compare: Runs the file beside the runtime: its path, the bundle's, ``outputs``, and what an error calls it,
            ``told``.
    """

    default_output: Callable[[Program], str]
    check: Callable[[Bundle, tuple[str, ...]], None]
    build: Callable[[Bundle, tuple[str, ...], int], Unfinished]
    compare: Callable[..., tuple[LengthCheck, ...]]


WHOLE = Form(lambda program: program.default_output, check_exportable, OneFile, check_file)
STEP = Form(lambda _: "last", check_step_exportable, StepFile, check_step_file)
