"""The file that one sequence is read from, a text or token numbers. A job remembers which, not what it holds."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from twoheads.export.cli.shared import arguments
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.relative_path import AbsolutePath

if TYPE_CHECKING:
    from twoheads.runtime import LoadedBundle

__all__ = ["SequenceFile", "SequenceRequest"]

FIX = "put it back as it was, or start the run again in another folder"


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """What a job remembers of its input: the absolute path, whether it is a text, and its sha256."""

    path: AbsolutePath
    is_text: bool
    sha256: str


@dataclass(frozen=True, slots=True)
class SequenceFile:
    """A file with one sequence.

    Attributes:
        path: Where it is.
        is_text: Whether it is a text in UTF-8; otherwise a ``.npy`` file of token numbers.
    """

    path: Path
    is_text: bool

    def read(self, loaded: LoadedBundle) -> npt.NDArray[Any]:
        """The token numbers.

        Raises:
            InputError: The file can't be read, or the bundle has no tokenizer for a text.
        """
        if not self.is_text:
            return arguments.read_tokens(self.path)
        content = arguments.read_text(self.path)
        return arguments.encode_text(content, loaded.tokenizer, source=self.path, bundle=loaded.path)

    def to_request(self) -> SequenceRequest:
        """What a job remembers."""
        return SequenceRequest(AbsolutePath(os.path.abspath(self.path)), self.is_text, _sha256(self.path))

    @classmethod
    def of_request(cls, request: SequenceRequest) -> SequenceFile:
        """The file that a job remembers.

        Raises:
            InputError: It is gone, or is no longer what it was.
        """
        path = Path(request.path)
        try:
            found = _sha256(path)
        except OSError as error:
            raise InputError(str(path), f"is the input of this job, and can't be read: {error.strerror}", FIX) from None
        if found != request.sha256:
            raise InputError(str(path), "is the input of this job, and has changed since it was started", FIX)
        return cls(path, request.is_text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
