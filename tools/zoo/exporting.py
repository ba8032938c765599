"""Small transformers as ONNX files, by the exporters that people use; made in seconds, deterministic."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from twoheads.export.emit.rewrites_by_operator import rewrites_by_operator
from twoheads.export.emit.torchlib_registry import kept_registry

__all__ = ["VOCABULARY", "FirstOutput", "export_model", "export_with_past", "small_model"]

VOCABULARY = 99

SIZES: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class FirstOutput(nn.Module):
    """A transformers model as the exporters want it: tensors in, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        # A cache in the output can't be exported, and models without one don't take the argument.
        caching = {"use_cache": False} if "use_cache" in signature(self.model.forward).parameters else {}
        return cast("Tensor", self.model(input_ids=input_ids, attention_mask=attention_mask, **caching)[0])


def small_model(kind: str) -> nn.Module:
    """``bert``, ``gpt2`` or ``llama`` (grouped heads), two layers, ready to be exported."""
    torch.manual_seed(0)
    model: Any
    if kind == "bert":
        model = BertModel(
            BertConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **SIZES), add_pooling_layer=False
        )
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=128))
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SIZES))
    return FirstOutput(model).eval()


def export_model(
    model: nn.Module, path: Path, *, output: str, opset: int, dynamo: bool, mask: bool = True, fixed: int | None = None
) -> Path:
    """Exports a model of ``input_ids`` and, if wanted, ``attention_mask``.

    Batch and tokens are dynamic, unless there is a ``fixed`` number of tokens: then the batch is one.
    """
    shape = (2, 11) if fixed is None else (1, fixed)
    ids = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    names = ["input_ids", "attention_mask"][: 1 + mask]
    arguments = (ids, torch.ones_like(ids))[: 1 + mask]
    dynamic: dict[str, Any] = {}
    if dynamo and fixed is None:
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=100)}
        dynamic = {"dynamic_shapes": tuple(sizes for _ in names)}
    elif fixed is None:
        dynamic = {"dynamic_axes": {name: {0: "batch", 1: "tokens"} for name in (*names, output)}}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), ExitStack() as sooner:
            warnings.simplefilter("ignore")
            if dynamo:  # the same files, in less time
                sooner.enter_context(kept_registry(opset))
                sooner.enter_context(rewrites_by_operator())
            torch.onnx.export(
                model, arguments, str(path), dynamo=dynamo, opset_version=opset, input_names=names,
                output_names=[output], verbose=False, **dynamic,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path


class _WithPast(nn.Module):
    """A decoder as it is exported for generation: past keys and values in, present ones out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        cache.update(key, value, 0)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return output.logits, output.past_key_values.layers[0].keys, output.past_key_values.layers[0].values


def export_with_past(path: Path) -> Path:
    """A GPT-2 of one layer with inputs and outputs for keys and values."""
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=VOCABULARY, n_positions=128))
    past = torch.randn(2, 4, 3, 8)
    arguments = (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 8, dtype=torch.long), past, past)
    names = ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"]
    outputs = ["logits", "present.0.key", "present.0.value"]
    dynamic = {name: {0: "batch", 1: f"{name} tokens"} for name in (*names[:2], "logits")}
    dynamic |= {name: {0: "batch", 2: f"{name} tokens"} for name in (*names[2:], *outputs[1:])}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _WithPast(model).eval(), arguments, str(path), dynamo=False, opset_version=17, input_names=names,
                output_names=outputs, dynamic_axes=dynamic,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path
