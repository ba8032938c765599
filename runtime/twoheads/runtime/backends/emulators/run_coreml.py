"""Packages of engines on Apple's Core ML: only macOS runs them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import coremltools
import numpy as np

if platform.system() != "Darwin":
    raise ImportError("Core ML is a part of macOS; coremltools alone runs nothing here")


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the package in which ``path`` is a file, and what runs it on any of the device's units."""
    package = next(folder for folder in Path(path).parents if folder.suffix == ".mlpackage")
    model = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit.ALL)
    about = model.get_spec().description
    inputs, outputs = _ports(about.input), _ports(about.output)
    names = [port[0] for port in inputs]

    def run(arrays: list[Any]) -> list[Any]:
        values = model.predict(dict(zip(names, arrays, strict=True)))
        return [np.asarray(values[port[0]], port[1]).reshape(port[2]) for port in outputs]

    return inputs, outputs, run


def _ports(features: Any) -> list[tuple[str, str, list[int]]]:
    return [(feature.name, "float32", list(feature.type.multiArrayType.shape)) for feature in features]
