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
    constants of the file, so operators that take them as numbers stand in. A division by a root becomes a product with
    ``rsqrt``, which is one operator in torch, and on accelerators that have no other root. Products and comparisons
    are called by the names that every compiler knows.
    """
    model = onnx.load(path)
    module = onnx2torch.convert(model).eval()
    for node in list(module.graph.nodes):
        _replace_inverse_root(module, node)
        operator = _operator(module, node)
        if operator in _STATIC:
            _replace(module, node, _STATIC[operator], node.args[0], *(_numbers(module, at) for at in node.args[1:]))
        elif operator in _SAME:
            _replace(module, node, _SAME[operator], *node.args)
        elif operator == "OnnxCompare":
            compare = module.get_submodule(str(node.target)).compare_function
            _replace(module, node, _COMPARISONS.get(compare, compare), *node.args)
    module.recompile()
    return module, model.graph


def _operator(module: fx.GraphModule, node: fx.Node) -> str:
    """The class of onnx2torch that computes the node."""
    return type(module.get_submodule(str(node.target))).__name__ if node.op == "call_module" else ""


def _replace(module: fx.GraphModule, node: fx.Node, operator: Any, *arguments: Any) -> None:
    with module.graph.inserting_before(node):
        made = module.graph.call_function(operator, arguments)
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)


def _replace_inverse_root(module: fx.GraphModule, node: fx.Node) -> None:
    if not _divides(module, node) or _operator(module, root := node.args[-1]) != "OnnxSqrt":
        return
    with module.graph.inserting_before(node):
        inverse = module.graph.call_function(torch.rsqrt, (root.args[0],))
        made = module.graph.call_function(torch.mul, (node.args[0], inverse)) if len(node.args) == 2 else inverse
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)


def _divides(module: fx.GraphModule, node: fx.Node) -> bool:
    operator = _operator(module, node)
    if operator == "OnnxBinaryMathOperation":
        return module.get_submodule(str(node.target)).math_op_function.__name__ == "_onnx_div"
    return operator == "OnnxReciprocal"


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


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Batches of products as such: torch's ``matmul`` expands them to the size that they have."""
    batches = left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0]
    return torch.bmm(left, right) if batches else torch.matmul(left, right)


_STATIC = {"OnnxReshape": _reshape, "OnnxSlice": _slice}
_SAME = {"OnnxMatMul": matmul}
_COMPARISONS = {
    torch.less: torch.lt,
    torch.less_equal: torch.le,
    torch.greater: torch.gt,
    torch.greater_equal: torch.ge,
}
