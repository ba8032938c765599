"""Engines with the weights of Core ML packages, in float32 on ONNX Runtime: what they cost, not what a Mac computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from run_onnxruntime import open_artifact as open_model  # type: ignore[import-not-found]


def open_artifact(path: str, device: str) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model beside the package in which ``path`` is a file, and what runs it."""
    package = next(folder for folder in Path(path).parents if folder.suffix == ".mlpackage")
    source = package.with_suffix(".onnx")
    if not source.exists():
        raise ValueError("its weights are not beside it: build again, with --calibrate, which keeps them")
    opened: tuple[list[Any], list[Any], Any] = open_model(str(source), device)
    return opened
