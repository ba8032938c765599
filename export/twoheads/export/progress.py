"""How long work tells how far it is: one protocol that the command line's bars fulfil."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called when a phase starts and, where its steps can be counted, after some of them."""

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        """``done`` of ``total`` steps of ``phase``; a total of 0 means that they are not counted."""


def silent(phase: str, done: int = 0, total: int = 0) -> None:
    """The progress that nobody watches."""
