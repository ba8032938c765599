"""ONNX files as their makers write them: exporters, optimisers and hand-made operators; small, made at test time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
import transformers as hf
from onnx import helper
from torch import nn

from tools.zoo.exporting import VOCABULARY, FirstOutput, export_model

__all__ = ["VOCABULARY", "ZOO", "ZooFile"]

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
POSITIONS: dict[str, Any] = {"max_position_embeddings": 128}
WINDOWED: dict[str, Any] = {"local_attention": 16, "global_attn_every_n_layers": 2}
DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
NO_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

MODELS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "bert": lambda: (hf.BertModel, hf.BertConfig(**SIZES, **POSITIONS)),
    "distilbert": lambda: (
        hf.DistilBertModel,
        hf.DistilBertConfig(vocab_size=VOCABULARY, dim=64, hidden_dim=96, n_layers=2, n_heads=4, **POSITIONS),
    ),
    "roberta": lambda: (hf.RobertaModel, hf.RobertaConfig(**SIZES, **POSITIONS)),
    "modernbert": lambda: (
        hf.ModernBertModel,
        hf.ModernBertConfig(
            **SIZES, **NO_TOKENS, **WINDOWED, cls_token_id=None, sep_token_id=None
        ),
    ),
    "t5 encoder": lambda: (
        hf.T5EncoderModel,
        hf.T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
    ),
    "llama": lambda: (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, num_key_value_heads=2)),
    "gpt2": lambda: (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, **NO_TOKENS),
    ),
    "gemma2": lambda: (
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config(
            **SIZES, num_key_value_heads=2, head_dim=16, sliding_window=9, attn_logit_softcapping=3.0
        ),
    ),
    "bloom": lambda: (hf.BloomForCausalLM, hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4)),
    "mpt": lambda: (
        hf.MptForCausalLM, hf.MptConfig(vocab_size=VOCABULARY, d_model=64, n_layers=2, n_heads=4, max_seq_len=128)
    ),
    "deberta": lambda: (
        hf.DebertaV2Model,
        hf.DebertaV2Config(
            **SIZES, **POSITIONS, **DISENTANGLED
        ),
    ),
}  # fmt: skip


def model(kind: str, attention: str) -> nn.Module:
    """A small random model whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    model_class, config = MODELS[kind]()
    config._attn_implementation = attention
    made: Any = model_class(config)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return FirstOutput(made).eval()


@dataclass(frozen=True, slots=True)
class ZooFile:
    """How a file is made: by whom (``torch``'s two exporters or a tool that rewrites what they wrote).

    ``native-half`` is the older exporter on a model in half precision.
    """

    kind: str
    maker: str
    opset: int
    attention: str = "sdpa"
    mask: bool = True

    def __str__(self) -> str:
        return f"{self.kind}, {self.maker}, {self.opset}, {self.attention}{'' if self.mask else ', no mask'}"

    def make(self, path: Path) -> Path:
        """Writes the file."""
        exporter, _, tool = self.maker.partition(" ")
        source = model(self.kind, self.attention)
        made = export_model(
            source.half() if exporter == "native-half" else source,
            path,
            output="hidden",
            opset=self.opset,
            dynamo=exporter == "dynamo",
            mask=self.mask,
        )
        return TOOLS[tool](made, self.kind) if tool else made


def _optimised(path: Path, kind: str, *, half: bool = False) -> Path:
    from onnxruntime.transformers.optimizer import optimize_model  # type: ignore[import-untyped]

    family = "gpt2" if kind == "gpt2" else "bert"
    optimised = optimize_model(str(path), family, num_heads=4, hidden_size=64, opt_level=0)
    if half:
        optimised.convert_float_to_float16(keep_io_types=True)
    optimised.save_model_to_file(str(path))
    return path


def _by_runtime(path: Path, kind: str) -> Path:
    """What ONNX Runtime itself makes of a file: its extended optimisations, saved."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return path.with_suffix(".optimised.onnx")


def _for_runtime(path: Path, kind: str) -> Path:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    fused, _ = optimize_for_ort(onnx_ir.load(str(path)))
    onnx_ir.save(fused, str(path))
    return path


def _half(path: Path, kind: str) -> Path:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

    onnx.save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=False), str(path))
    return path


def _external(path: Path, kind: str) -> Path:
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=256)
    return path


def _four_bits(path: Path, kind: str) -> Path:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-untyped]

    quantizer: Any = MatMulNBitsQuantizer(
        onnx.load(str(path)), bits=4, block_size=32, is_symmetric=False, accuracy_level=1
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
    return path


def _static_int8(path: Path, kind: str) -> Path:
    """Quantised and dequantised around every product with a weight, with scales from random tokens."""
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        CalibrationDataReader,
        QuantFormat,
        quantize_static,
    )

    class _Tokens(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            generator = np.random.default_rng(0)
            self.given = iter([generator.integers(0, VOCABULARY, (1, 20)) for _ in range(4)])

        def get_next(self) -> Any:
            ids = next(self.given, None)
            return None if ids is None else {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    graph = onnx.load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    between = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    made = path.with_suffix(".int8.onnx")
    options: dict[str, Any] = {"op_types_to_quantize": ["MatMul"], "nodes_to_exclude": between}
    quantize_static(str(path), str(made), _Tokens(), quant_format=QuantFormat.QDQ, **options)
    return made


def _dynamic_int8(path: Path, kind: str) -> Path:
    """Weights of eight bits, and activations that are quantised by their range over all tokens."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(path, made := path.with_suffix(".int8.onnx"))
    return made


def _merged(path: Path, kind: str) -> Path:
    """Two copies of the model behind an ``If`` that a switch decides, as decoders with and without a past come."""
    whole = onnx.load(str(path)).graph
    branches: list[onnx.GraphProto] = []
    for factor in (2.0, 1.0):  # the branch with a past, which no run may take, is another function
        branch = onnx.GraphProto()
        branch.CopyFrom(whole)
        del branch.input[:]
        output = branch.output[0].name
        branch.node.append(helper.make_node("Mul", [output, "factor"], ["scaled"]))
        branch.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
        branch.output[0].name = "scaled"
        branches.append(branch)
    node = helper.make_node("If", ["use_cache_branch"], ["logits"], then_branch=branches[0], else_branch=branches[1])
    result = onnx.ValueInfoProto()
    result.CopyFrom(whole.output[0])
    result.name = "logits"
    switch = helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    past = helper.make_tensor_value_info("past_key_values.0.key", onnx.TensorProto.FLOAT, ["batch", 4, "past", 16])
    graph = helper.make_graph([node], "merged", [*whole.input, past, switch], [result])
    model = onnx.load(str(path))
    model.graph.CopyFrom(graph)
    onnx.save(model, str(path))
    return path


TOOLS: Mapping[str, Callable[[Path, str], Path]] = {
    "optimised": _optimised,
    "optimised half": lambda path, kind: _optimised(path, kind, half=True),
    "by runtime": _by_runtime,
    "for runtime": _for_runtime,
    "half": _half,
    "external": _external,
    "four bits": _four_bits,
    "static int8": _static_int8,
    "dynamic int8": _dynamic_int8,
    "merged": _merged,
}

ZOO = (
    ZooFile("bert", "legacy", 13, "eager"),
    ZooFile("bert", "legacy optimised", 14, "eager"),
    ZooFile("bert", "legacy optimised half", 17, "eager"),
    ZooFile("bert", "dynamo external", 20),
    ZooFile("bert", "dynamo for runtime", 18),
    ZooFile("bert", "legacy by runtime", 17),
    ZooFile("distilbert", "legacy", 17),
    ZooFile("distilbert", "dynamo", 23),
    ZooFile("roberta", "legacy", 14),
    ZooFile("modernbert", "dynamo", 18),
    ZooFile("modernbert", "dynamo", 23),
    ZooFile("t5 encoder", "legacy", 13, "eager"),
    ZooFile("t5 encoder", "dynamo", 18, "eager"),
    ZooFile("llama", "legacy", 17),
    ZooFile("llama", "dynamo", 20, mask=False),
    ZooFile("llama", "dynamo", 23),
    ZooFile("llama", "dynamo", 24, mask=False),
    ZooFile("llama", "dynamo for runtime", 18),
    ZooFile("llama", "legacy half", 17),
    ZooFile("llama", "native-half", 17, "eager"),
    ZooFile("llama", "legacy four bits", 17),
    ZooFile("llama", "legacy merged", 17),
    ZooFile("bert", "legacy static int8", 17, "eager"),
    ZooFile("bert", "legacy dynamic int8", 17, "eager"),
    ZooFile("llama", "legacy dynamic int8", 17),
    ZooFile("gpt2", "legacy optimised", 14, "eager"),
    ZooFile("gpt2", "dynamo by runtime", 18),
    ZooFile("gpt2", "legacy external", 17, "eager"),
    ZooFile("gemma2", "dynamo", 18, "eager"),
    ZooFile("gemma2", "dynamo", 23, "eager"),
    ZooFile("bloom", "dynamo", 18, "eager", mask=False),
    ZooFile("mpt", "legacy", 17, "eager"),
)
