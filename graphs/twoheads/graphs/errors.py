"""The errors every part of the project raises: where it happened, what is wrong, what to do about it."""

from __future__ import annotations

__all__ = ["BundleError", "CompileError", "InputError", "InternalError", "TwoheadsError"]


class TwoheadsError(Exception):
    """An error that a user can act on; the command line prints it without a traceback and exits with 1.

    Args:
        where: The file, layer, node or argument concerned, as the user knows it.
        problem: What is wrong, with the value that is wrong.
        fix: What to do about it; empty where nothing can be suggested.
    """

    def __init__(self, where: str, problem: str, fix: str = "") -> None:
        self.where = where
        self.problem = problem
        self.fix = fix
        super().__init__(f"{where}: {problem}" + (f"\n  fix: {fix}" if fix else ""))

    def __reduce__(self) -> tuple[type[TwoheadsError], tuple[str, str, str]]:
        """Errors of other processes arrive as what they are."""
        return type(self), (self.where, self.problem, self.fix)


class CompileError(TwoheadsError):
    """The model can't be compiled: not a model, an unsupported construction, a missing weight."""


class BundleError(TwoheadsError):
    """A bundle can't be read or written: damaged, foreign, of another version, or the disk refused it."""


class InputError(TwoheadsError):
    """A run's input can't be processed: empty, too long for the model, tokens outside the vocabulary."""


class InternalError(Exception):
    """Our bug: an invariant of this project does not hold. Never the user's fault, always worth a report."""
