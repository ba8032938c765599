"""The one input size of a file whose inputs have no tokens to be cut along: images, spectrograms.

Exporters name all dimensions of an image, though the file runs at one size: its table of positions has as many rows.
The configuration that lies beside the file says which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twoheads.compiler.frontend.onnx.model.read_file import GraphInput, OnnxFile
from twoheads.compiler.frontend.onnx.one_of_batch import one_input
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Input, Value

__all__ = ["one_size"]

REMEDY = (
    "fix its sizes, e.g. by python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME --dim_value NUMBER, "
    "or put the model's config.json beside the file"
)


def one_size(file: OnnxFile) -> tuple[OnnxFile, tuple[Input, ...]]:
    """The file for a batch of one, and its inputs with numbers for sizes.

    Raises:
        CompileError: An input has a dimension that neither the file nor a configuration beside it says.
    """
    if not file.inputs:
        raise CompileError(str(file.path), "has no inputs", "export the whole model")
    beside = _sizes_beside(file.path)
    inputs = tuple(replace(value, shape=_said(value, beside)) for value in file.inputs)
    file = one_input(replace(file, inputs=inputs), {value.name: "argument" for value in inputs})
    return file, tuple(_fixed(value) for value in file.inputs)


def _fixed(value: GraphInput) -> Input:
    shape = [1 if at == 0 and len(value.shape) > 1 else dim for at, dim in enumerate(value.shape)]
    sizes = [dim for dim in shape if isinstance(dim, int) and dim > 0]
    if not shape or len(sizes) < len(shape):
        raise CompileError(
            f"input {value.name}", f"has the shape {list(value.shape)}: whole models have one input size", REMEDY
        )
    return Input(Value(value.name, value.dtype, tuple(sizes)), "argument", None)


def _said(value: GraphInput, beside: Mapping[str, tuple[int, ...]]) -> tuple[int | str | None, ...]:
    """The shape with the numbers that the configuration has for it; those of the file count more."""
    known = beside.get(value.name, ())
    if len(value.shape) != len(known) + 1:
        return value.shape
    own = zip(value.shape[1:], known, strict=True)
    return (value.shape[0], *(dim if isinstance(dim, int) and dim > 0 else size for dim, size in own))


def _sizes_beside(path: Path) -> dict[str, tuple[int, ...]]:
    """Sizes behind the batch, by the names that transformers gives to inputs, out of ``config.json``."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    file = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    try:
        said: Any = json.loads(file.read_bytes()) if file else {}
    except ValueError:  # no JSON, so nothing is said
        said = {}
    found: dict[str, tuple[int, ...]] = {}
    whole: dict[str, Any] = said if isinstance(said, dict) else {}
    vision: Any = whole.get("vision_config", whole)
    vision = vision if isinstance(vision, dict) else {}
    size: Any = vision.get("image_size")
    image = _numbers([vision.get("num_channels", 3), *(size if isinstance(size, list) else [size, size])], 3)
    if image:
        found["pixel_values"] = image
    spectrogram = _numbers([whole.get("num_mel_bins"), whole.get("max_source_positions")], 2)
    if spectrogram:  # a convolution of stride 2 halves its rows
        found["input_features"] = (spectrogram[0], 2 * spectrogram[1])
    return found


def _numbers(found: list[Any], count: int) -> tuple[int, ...]:
    """The sizes, none if there are not so many or one is no size."""
    sizes = tuple(number for number in found if type(number) is int and number > 0)
    return sizes if len(sizes) == len(found) == count else ()
