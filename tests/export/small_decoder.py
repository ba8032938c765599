"""A small decoder and its compilation, and an ONNX file, for tests of passes over compiled models."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from onnx import TensorProto, helper
from transformers import LlamaConfig, LlamaForCausalLM

from tests.compiler.onnx_graphs import save_model
from twoheads.compiler import compile_model
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.export.emit.tokenwise import EmittedRegion, emit_tokenwise
from twoheads.graphs.program.program import TokenwiseEngine

BLOCK, LENGTH = 32, 71


def _llama() -> Any:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def _emitted(module: Any) -> CompiledModel:
    """The compiled module, its engines made already: every pass over them starts from the same ones."""
    model = compile_model(module, block_size=BLOCK)
    engines = {engine.name: cast("TokenwiseEngine", engine) for engine in model.program.engines}
    made = {
        name: EmittedRegion(region, emit_tokenwise(region, engines[name]), engines[name])
        for name, region in model.regions.items()
    }
    return replace(model, regions=made)


@dataclass(frozen=True)
class Decoder:
    """A module and what became of it."""

    module: Any
    model: CompiledModel


@cache
def small_decoder() -> Decoder:
    """Two layers with grouped heads and one tied table, compiled once a process; the module is not to be changed."""
    module = _llama()
    return Decoder(module, _emitted(module))


def with_4_bits(
    module: Any, compiled: CompiledModel, *others: str, end: str | tuple[str, ...] = "proj.weight"
) -> tuple[Any, CompiledModel]:
    """Both with numbers of a GGUF file's Q4_1 in the matrices whose names end so, but for ``others``.

    The module is a copy.
    """
    kind = GGMLQuantizationType.Q4_1
    module, weights = copy.deepcopy(module), dict(compiled.weights)
    tensors = module.state_dict()
    for name in [name for name in tensors if name.endswith(end) and name not in others]:
        numbers = np.asarray(dequantize(quantize(tensors[name].numpy(), kind), kind), np.float32)
        weights[name] = torch.from_numpy(numbers)
        tensors[name].copy_(weights[name])
    return module, replace(compiled, weights=weights)


def save_attention(folder: Path) -> Path:
    """An ONNX file of one attention of width 64 whose output weight ``wo`` is transposed before it multiplies."""
    generator = np.random.default_rng(0)
    names = ("wq", "wk", "wv", "wo")
    weights: dict[str, Any] = {name: generator.standard_normal((64, 64)).astype(np.float32) / 8 for name in names}
    weights["bias"] = generator.standard_normal(64).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"]),
        helper.make_node("MatMul", ["x", "wk"], ["k"]),
        helper.make_node("MatMul", ["x", "wv"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("Transpose", ["wo"], ["wot"], perm=[1, 0]),
        helper.make_node("MatMul", ["mixed", "wot"], ["joined"]),
        helper.make_node("Add", ["joined", "bias"], ["y"]),
    ]
    shape: list[int | str | None] = ["batch", "tokens", 64]
    inputs = {"x": (TensorProto.FLOAT, shape)}
    return save_model(folder / "model.onnx", nodes, weights, {"y": shape}, inputs=inputs)
