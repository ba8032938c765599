"""Pure data and its algebra: masks and their tiles, the block program, and its schedule for one length."""

from twoheads.graphs.errors import BundleError, CompileError, InputError, InternalError, TwoheadsError
from twoheads.graphs.masks.expressions import Mask, parse_mask
from twoheads.graphs.program.parser import parse_program
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import Program
from twoheads.graphs.schedule.schedule import Schedule, make_schedule

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
