"""Rockchip's toolkit: a model for the NPU of an RK3588 or its kin, the list of operators off it, and the simulator."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rknn.api import RKNN

PORTS = ("InputOperator", "OutputOperator")
TABLE = re.compile(r"ID +OpType +DataType +Target ")
ROW = re.compile(r"RKNN: \[[^]]*\] *\d+ +(\w+) +\w+ +(CPU|NPU) +\S+ +\S+ +[\d/]+ +\d+ *(\S*)")


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "rknn-toolkit2", "version": importlib.metadata.version("rknn-toolkit2")}


def build(request: dict[str, Any]) -> None:
    """Builds in half precision, or in int8 by the ranges of the request's samples, and simulates if asked.

    An engine that multiplies by no weights, as attention's, stays in half precision: 8 bits ruin a softmax. Elsewhere a
    column of a weight has a scale.
    """
    whole = request["precision"] == "int8" and _has_weights(request["onnx"])
    compiler = RKNN(verbose=True)
    try:
        how = {"quantized_dtype": "w8a8", "quantized_method": "channel"} if whole else {}
        _checked("config", compiler.config(target_platform=request["device"], float_dtype="float16", **how))
        _checked("load_onnx", compiler.load_onnx(model=request["onnx"]))
        if whole:
            _checked("build", compiler.build(do_quantization=True, dataset=_dataset(request)))
        else:
            _checked("build", compiler.build(do_quantization=False))
        _checked("export_rknn", compiler.export_rknn(str(Path(request["folder"]) / f"{request['name']}.rknn")))
        _declare_ports(request)
        if request["outputs"]:
            _simulate(compiler, request)
            _keep_source(request, whole)
    finally:
        compiler.release()


def _has_weights(path: str) -> bool:
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return any(node.op_type in ("MatMul", "Gemm") and constants & set(node.input[:2]) for node in graph.node)


def _keep_source(request: dict[str, Any], whole: bool) -> None:
    """Leaves what the simulator built from beside the artifact, for whole runs: it takes no ``.rknn`` file."""
    base = Path(request["folder"]) / request["name"]
    shutil.copy(request["onnx"], f"{base}.onnx")
    if whole:
        samples: dict[str, Any] = {}
        for at, file in enumerate(request["samples"]):
            with np.load(file) as given:
                samples |= {f"{at}.{port}": given[port] for port in given.files}
        np.savez(f"{base}.npz", **samples)


def _declare_ports(request: dict[str, Any]) -> None:
    """Writes the ports beside the model, for the board: its runtime does not tell them."""
    graph = onnx.load(request["onnx"], load_external_data=False).graph
    sides = {"inputs": graph.input, "outputs": graph.output}
    told = {
        side: [[port.name, "float32", [dim.dim_value for dim in port.type.tensor_type.shape.dim]] for port in ports]
        for side, ports in sides.items()
    }
    (Path(request["folder"]) / f"{request['name']}.json").write_text(json.dumps(told), encoding="utf-8")


def _checked(step: str, code: int) -> None:
    if code != 0:
        raise ValueError(f"{step} failed with {code}")


def _dataset(request: dict[str, Any]) -> str:
    """Writes the samples as the toolkit reads them, a line each: a file for every input, in order."""
    graph = onnx.load(request["onnx"], load_external_data=False).graph
    lines: list[str] = []
    for sample in request["samples"]:
        files = [f"{sample.removesuffix('.npz')}.{at}.npy" for at in range(len(graph.input))]
        with np.load(sample) as given:
            for file, port in zip(files, graph.input, strict=True):
                np.save(file, given[port.name])
        lines.append(" ".join(files) + "\n")
    listed = Path(f"{request['onnx']}.txt")
    listed.write_text("".join(lines), encoding="utf-8")
    return str(listed)


def _simulate(compiler: Any, request: dict[str, Any]) -> None:
    _checked("init_runtime", compiler.init_runtime())
    graph = onnx.load(request["onnx"], load_external_data=False).graph
    with np.load(request["inputs"]) as given:
        inputs = [given[port.name] for port in graph.input]
    values = compiler.inference(inputs=inputs, data_format=["nchw"] * len(inputs))
    np.savez(request["outputs"], **{port.name: value for port, value in zip(graph.output, values, strict=True)})


def off_accelerator(log: str) -> list[str]:
    """The rows of the compiler's last table of operators whose target is the processor, but for copies of ports."""
    off: list[str] = []
    for line in log.splitlines():
        if TABLE.search(line):
            off = []
        if (row := ROW.search(line)) and row[2] == "CPU" and row[1] not in PORTS:
            off.append(f"{row[1]} {row[3].rpartition(':')[2]}".strip())
    return off
