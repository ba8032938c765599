"""What Vela says of the operators that it leaves to the processor."""

from __future__ import annotations

import re

LEFT = re.compile(r"^Warning \(supported operators\) operator: (\w+), ofm: '([^']*)'", re.MULTILINE)
CLASS = re.compile(r"^(?:\w+\.)*[A-Z][A-Za-z0-9]*_")
"""A torch module's class, with which the converter begins a tensor's name."""


def cpu_operators(log: str) -> list[str]:
    """Its operators off the NPU, as ``OPERATOR node``, with the node's name in the ONNX file if that is told."""
    return [
        f"{'unnamed' if operator == 'None' else operator} {_node(tensor)}".strip()
        for operator, tensor in LEFT.findall(log)
    ]


def _node(tensor: str) -> str:
    """``log_8`` of ``...Wrapper/onnx2torch.node_converters.functions.OnnxFunction_log_8;_quantized``.

    A tensor of fused operators has all their names, the last operator first.
    """
    name = tensor.partition(";;")[0].rpartition("/")[2].partition(";")[0]
    return "" if "<locals>" in name else CLASS.sub("", name)
