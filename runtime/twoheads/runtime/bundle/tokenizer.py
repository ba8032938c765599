"""The bundle's own tokenizer, in the format of Hugging Face ``tokenizers``."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import BundleError, InputError

__all__ = ["Tokenizer"]


class Tokenizer:
    """Text to tokens and back. The package ``tokenizers`` and the file are loaded at the first use.

    Args:
        path: ``tokenizer.json``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded: Any = None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of ``text``; never cut or padded.

        Args:
            text: What to read. Special tokens that it spells out are read as such.
            special: Whether those that the model expects around a text are added.

        Raises:
            InputError: The package ``tokenizers`` is not installed.
            BundleError: The file can't be read, or has no token for a part of the text.
        """
        loaded = self._load()
        with self._reading():
            return list(loaded.encode(text, add_special_tokens=special).ids)

    def encode_batch(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        """The tokens of each text, on all processors, cut to ``limit`` if it is given; special tokens are kept.

        Raises:
            InputError: The package ``tokenizers`` is not installed.
            BundleError: The file can't be read.
        """
        loaded = self._load()
        if limit is not None:
            loaded.enable_truncation(limit)
        try:
            with self._reading():
                return [list(found.ids) for found in loaded.encode_batch_fast(list(texts))]
        finally:
            loaded.no_truncation()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, without special tokens.

        Raises:
            InputError: The package ``tokenizers`` is not installed.
            BundleError: The file can't be read.
        """
        return str(self._load().decode([int(token) for token in tokens]))

    @contextmanager
    def _reading(self) -> Generator[None]:
        """Turns the package's plain exceptions into one that names the file."""
        try:
            yield
        except Exception as error:  # it raises nothing more special
            problem = f"has no tokens for the text: {' '.join(str(error).split())[:200]}"
            raise BundleError(str(self._path), problem, "compile the model again") from error

    def _load(self) -> Any:
        if self._loaded is not None:
            return self._loaded
        try:
            import tokenizers
        except ImportError as error:
            raise InputError(
                "text",
                "the package tokenizers is not installed, so that text can't become tokens",
                'pip install "twoheads[text]", or give tokens',
            ) from error
        try:
            loaded = tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:  # the package raises plain Exception
            raise BundleError(str(self._path), f"can't be read: {error}", "compile the model again") from error
        # A file may carry the truncation to 512 tokens and the padding its owner once trained with.
        loaded.no_truncation()
        loaded.no_padding()
        self._loaded = loaded
        return loaded
