"""LiteRT: a flatbuffer of each engine, by way of torch, run by LiteRT's interpreter; small weights if asked."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch_module import torch_module


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "litert-torch", "version": importlib.metadata.version("litert-torch")}


def build(request: dict[str, Any]) -> None:
    """Converts, and runs if asked."""
    module, graph = torch_module(request["onnx"])
    with np.load(request["inputs"]) as given:
        inputs = tuple(torch.from_numpy(given[port.name]) for port in graph.input)
    target = Path(request["folder"]) / f"{request['name']}.tflite"
    litert_torch.convert(module, inputs).export(str(target))
    if request["precision"] != "fp32":
        _compress(target, request["precision"])
    if request["outputs"]:
        interpreter = Interpreter(model_path=str(target))
        runner = interpreter.get_signature_runner()
        # The converter narrows whole numbers to 32 bits.
        types = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}
        given = {f"args_{at}": array.numpy() for at, array in enumerate(inputs)}
        values = runner(**{name: array.astype(types[name]) for name, array in given.items()})
        names = sorted(values, key=lambda name: int(name.rpartition("_")[2]))
        outputs = {port.name: values[name] for port, name in zip(graph.output, names, strict=True)}
        np.savez(request["outputs"], **outputs)


def _compress(model: Path, precision: str) -> None:
    """Stores the weights of products in 8 or 4 bits, a scale a column; what is multiplied is float32."""
    from ai_edge_quantizer import quantizer, recipe

    recipes = {"w8": recipe.weight_only_wi8_afp32, "w4": recipe.weight_only_wi4_afp32}
    maker = quantizer.Quantizer(str(model))
    maker.load_quantization_recipe(recipes[precision]())
    small = model.with_suffix(".small")
    maker.quantize().export_model(str(small))
    small.replace(model)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
