"""Arm's Vela for Ethos-U NPUs: an int8 LiteRT model of each engine, compiled, and Vela's own list of CPU operators.

The whole numbers are run by LiteRT's interpreter, before Vela moves them into command streams: the NPU computes what
that does, so it tells what int8 costs.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from torch_module import torch_module
from vela_report import cpu_operators


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "ethos-u-vela", "version": importlib.metadata.version("ethos-u-vela")}


def build(request: dict[str, Any]) -> None:
    """Converts, quantises by the ranges of runs on the request's samples, compiles, and runs if asked."""
    name, folder = request["name"], Path(request["folder"])
    module, graph = torch_module(request["onnx"])
    inputs, *samples = (_read(file, graph) for file in (request["inputs"], *request["samples"]))
    whole = folder / f"{name}.float.tflite"
    small = folder / f"{name}.int8.tflite"
    litert_torch.convert(module, tuple(map(torch.from_numpy, inputs))).export(str(whole))
    _quantise(whole, small, samples)
    if request["outputs"]:
        values = _run(small, inputs)
        np.savez(request["outputs"], **{port.name: value for port, value in zip(graph.output, values, strict=True)})
    vela = [str(Path(sys.executable).parent / "vela"), str(small), "--accelerator-config", request["device"]]
    subprocess.run([*vela, "--output-dir", str(folder)], check=True)  # noqa: S603 - this environment's own tool
    (folder / f"{name}.int8_vela.tflite").rename(folder / f"{name}.tflite")
    for left in (whole, small, *folder.glob(f"{name}.int8_summary_*.csv")):
        left.unlink()


def _read(file: str, graph: Any) -> list[Any]:
    with np.load(file) as given:
        return [given[port.name] for port in graph.input]


def _quantise(whole: Path, small: Path, samples: list[list[Any]]) -> None:
    maker = quantizer.Quantizer(str(whole))
    maker.load_quantization_recipe(recipe.static_wi8_ai8())
    details = Interpreter(model_path=str(whole)).get_signature_runner().get_input_details()
    given = [
        {f"args_{at}": array.astype(details[f"args_{at}"]["dtype"]) for at, array in enumerate(inputs)}
        for inputs in samples
    ]
    maker.quantize(maker.calibrate({"serving_default": given})).export_model(str(small))


def _run(model: Path, inputs: list[Any]) -> list[Any]:
    """The outputs in order, as numbers that the stored ones stand for."""
    runner = Interpreter(model_path=str(model)).get_signature_runner()
    given = runner.get_input_details()
    values = runner(**{f"args_{at}": _stored(array, given[f"args_{at}"]) for at, array in enumerate(inputs)})
    details = runner.get_output_details()
    names = sorted(values, key=lambda name: int(name.rpartition("_")[2]))
    return [_meant(values[name], details[name]) for name in names]


def _stored(array: Any, detail: dict[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    if not scale:
        return array.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _meant(array: Any, detail: dict[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale else array


def off_accelerator(log: str) -> list[str]:
    """Vela's list of operators that the NPU does not take."""
    return cpu_operators(log)
