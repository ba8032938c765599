"""IREE: machine code for the host's processor, run by its own runtime; the same modules compile for GPUs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import iree.compiler
import iree.runtime
import numpy as np
import onnx

FLAGS = ["--iree-llvmcpu-target-cpu=host"]


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "iree-base-compiler", "version": importlib.metadata.version("iree-base-compiler")}


def build(request: dict[str, Any]) -> None:
    """Imports, compiles, and runs if asked."""
    target = Path(request["folder"]) / f"{request['name']}.vmfb"
    imported = target.with_suffix(".mlir")
    importer = [sys.executable, "-m", "iree.compiler.tools.import_onnx", request["onnx"], "-o", str(imported)]
    subprocess.run(importer, check=True)  # noqa: S603 - this environment's own tool
    iree.compiler.compile_file(
        str(imported), target_backends=["llvm-cpu"], input_type="onnx", extra_args=FLAGS, output_file=str(target)
    )
    imported.unlink()
    if request["outputs"]:
        _run(target, request)


def _run(target: Path, request: dict[str, Any]) -> None:
    graph = onnx.load(request["onnx"], load_external_data=False).graph
    module = iree.runtime.load_vm_flatbuffer_file(str(target), driver="local-task")
    function = module[graph.name] if graph.name in module.vm_module.function_names else None
    if function is None:
        function = module[module.vm_module.function_names[0]]
    with np.load(request["inputs"]) as given:
        results = function(*(given[port.name] for port in graph.input))
    values = results if isinstance(results, (list, tuple)) else [results]
    outputs = {port.name: np.asarray(value) for port, value in zip(graph.output, values, strict=True)}
    np.savez(request["outputs"], **outputs)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
