"""Pure data and its algebra: masks and their tiles, the block program, and its schedule for one length."""

import os

from twoheads.graphs.errors import BundleError, CompileError, InputError, InternalError, TwoheadsError
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.graphs.program.parser import parse_program
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule, make_schedule

# The official builds of ONNX Runtime tell their maker about every session, and keep an identifier of the machine for
# it, unless this is set before they are imported; who wants that says so by setting it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BundleError",
    "CompileError",
    "InputError",
    "InternalError",
    "Mask",
    "Program",
    "Schedule",
    "TwoheadsError",
    "make_schedule",
    "parse_mask",
    "parse_program",
    "print_program",
]
