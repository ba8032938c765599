"""An engine's ONNX file as a torch module that ``torch.export`` takes, for the compilers that begin with torch."""

from __future__ import annotations

from typing import Any

import onnx
import onnx2torch
import torch
from torch import fx


def torch_module(path: str) -> tuple[fx.GraphModule, onnx.GraphProto]:
    """The file as a torch module, and its graph.

    onnx2torch reads sizes and bounds from tensors while it runs, which ``torch.export`` can't follow. They are
    constants of the file, so operators that take them as numbers stand in.
    """
    model = onnx.load(path)
    module = onnx2torch.convert(model).eval()
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        operator = _STATIC.get(type(module.get_submodule(node.target)).__name__)
        if operator is None:
            continue
        numbers = [_numbers(module, argument) for argument in node.args[1:]]
        with module.graph.inserting_before(node):
            made = module.graph.call_function(operator, (node.args[0], *numbers))
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.recompile()
    return module, model.graph


def _numbers(module: fx.GraphModule, argument: Any) -> list[int] | None:
    if argument is None:
        return None
    value: Any = module
    for part in argument.target.split("."):
        value = getattr(value, part)
    return [int(number) for number in value.flatten().tolist()]


def _reshape(value: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return torch.reshape(value, [value.shape[at] if size == 0 else size for at, size in enumerate(sizes)])


def _slice(
    value: torch.Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> torch.Tensor:
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[at] if axes else at
        value = torch.ops.aten.slice.Tensor(value, axis, start, end, steps[at] if steps else 1)
    return value


_STATIC = {"OnnxReshape": _reshape, "OnnxSlice": _slice}
