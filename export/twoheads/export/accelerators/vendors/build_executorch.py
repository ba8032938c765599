"""ExecuTorch for CPUs: a program of each engine whose nodes XNNPACK computes, and what its delegate did not take.

In ``w8a8`` and ``w4a8`` products with weights multiply whole numbers: a row of activations is rounded to 8 bits in the
run, by its own range; weights have 8 bits and a scale a column, or 4 bits and a scale for every 32.
"""

from __future__ import annotations

import importlib.metadata
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import fx
from torch_module import matmul, torch_module
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, PerGroup, quantize_
from torchao.quantization.granularity import Granularity

GROUP = 32
"""Weights of 4 bits that share a scale: XNNPACK takes multiples of 32 that divide the rows of a matrix."""

LEFT = "outside of the delegate: "


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "executorch", "version": importlib.metadata.version("executorch")}


def build(request: dict[str, Any]) -> None:
    """Exports, lowers, prints what portable kernels compute, and runs if asked."""
    module, graph = torch_module(request["onnx"])
    with np.load(request["inputs"]) as given:
        inputs = tuple(torch.from_numpy(given[port.name]) for port in graph.input)
    if request["precision"] != "fp32":
        _round(module, request["precision"])
    lowered = to_edge_transform_and_lower(torch.export.export(module, inputs), partitioner=[XnnpackPartitioner()])
    for node in lowered.exported_program().graph.nodes:
        if node.op == "call_function" and not _is_delegated(node):
            print(f"{LEFT}{_operator(node)} {_place(node)}")
    target = Path(request["folder"]) / f"{request['name']}.pte"
    target.write_bytes(lowered.to_executorch().buffer)
    if request["outputs"]:
        values = Runtime.get().load_program(target).load_method("forward").execute(list(inputs))
        outputs = {port.name: value.numpy() for port, value in zip(graph.output, values, strict=True)}
        np.savez(request["outputs"], **outputs)


def _round(module: fx.GraphModule, precision: str) -> None:
    """Rounds the weights of products, and lets rows of activations be rounded in the run; in place."""
    _write_as_layers(module)
    weights: dict[str, tuple[torch.dtype, Granularity]] = {
        "w8a8": (torch.int8, PerAxis(0)),
        "w4a8": (torch.int4, PerGroup(GROUP)),
    }
    dtype, granularity = weights[precision]
    quantize_(module, Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=granularity))
    whole = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    left = [layer for layer in whole if type(layer.weight.data) is torch.Tensor]
    if left:
        raise ValueError(f"{len(left)} of {len(whole)} weights were not rounded to {precision}")


def _write_as_layers(module: fx.GraphModule) -> None:
    """Products with a weight become linear layers, which are all that the quantiser rounds; in place."""
    for number, node in enumerate(list(module.graph.nodes)):
        weight = _weight(module, node)
        if weight is not None:
            layer = torch.nn.Linear(*weight.shape, bias=False)
            layer.weight = torch.nn.Parameter(weight.detach().T.contiguous(), requires_grad=False)
            module.add_submodule(f"product_{number}", layer)
            with module.graph.inserting_before(node):
                made = module.graph.call_module(f"product_{number}", (node.args[0],))
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
    module.recompile()


def _weight(module: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The matrix ``[in, out]`` of a product with a weight."""
    if node.op != "call_function" or node.target is not matmul:
        return None
    right = node.args[1]
    if not isinstance(right, fx.Node) or right.op != "get_attr":
        return None
    owner, _, name = str(right.target).rpartition(".")
    value: torch.Tensor = getattr(module.get_submodule(owner), name)
    return value if value.dim() == 2 else None


def _is_delegated(node: fx.Node) -> bool:
    return "executorch_call_delegate" in str(node.target) or node.target is operator.getitem


def _operator(node: fx.Node) -> str:
    """``add`` of ``aten.add.Tensor``."""
    return str(node.target.__name__).split(".")[1]


def _place(node: fx.Node) -> str:
    """The engine's node that it comes from, where that was a module of its own."""
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return modules[-1].rpartition(".")[2] if modules else node.name


def off_accelerator(log: str) -> list[str]:
    """The nodes outside of the delegate: ExecuTorch's portable kernels compute them, on the same processor."""
    return [line.removeprefix(LEFT) for line in log.splitlines() if line.startswith(LEFT)]
