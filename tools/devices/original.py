"""The original model beside which a journey's result is laid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from tools.fetch_models import model_path
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.torch_original import TorchOriginal

__all__ = ["CASES", "Original", "load_original", "model_file"]

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "tools" / "data" / "founding_documents.txt"

CASES = {"minilm": (500, "hidden"), "smollm2": (1024, "logits")}
"""Tokens of each model's run, and what is compared. MiniLM takes 512 tokens at most."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Original:
    """A model with an input.

    Attributes:
        name: The model's.
        path: Its files.
        tokens: int64 ``[n]``.
        output: What ``expected`` is: ``hidden`` or ``logits``.
        expected: Of torch in float32.
    """

    name: str
    path: Path
    tokens: npt.NDArray[np.int64]
    output: str
    expected: Array

    def compare(self, found: Array) -> tuple[float, float | None]:
        """The norm of the difference as a share of the norm, and the share of positions with the same best token."""
        if found.shape != self.expected.shape:
            raise RuntimeError(f"{self.name} gave {found.shape}, the original {self.expected.shape}")
        error = float(np.linalg.norm(found - self.expected) / np.linalg.norm(self.expected))
        if self.output != "logits":
            return error, None
        return error, float((found.argmax(-1) == self.expected.argmax(-1)).mean())


def model_file(name: str) -> Path:
    """Where the model's files are, which have to be there."""
    path = model_path(name, ROOT / ".cache" / "models")
    if path is None:
        raise SystemExit(f"fetch the model first: python -m tools.fetch_models {name}")
    return path


def load_original(name: str, length: int | None = None) -> Original:
    """The model ``name`` with the first ``length`` tokens of a text, or as many as its case has."""
    path = model_file(name)
    source = load_source(path)
    assert source.tokenizer_json is not None
    most, output = CASES[name]
    tokenizer = Tokenizer.from_buffer(source.tokenizer_json)
    tokenizer.no_truncation()
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids[: length or most]
    tokens = np.array(ids, np.int64)
    hidden, logits = TorchOriginal(source).hidden_and_logits(torch.from_numpy(tokens[None]))
    expected = logits if output == "logits" else hidden
    assert expected is not None
    return Original(name, path, tokens, output, expected.numpy())
