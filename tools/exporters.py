"""Small models of random weights, exported as people export them: ``PYTHON -m tools.exporters FOLDER EXPORTER``.

``EXPORTER`` is ``optimum-onnx`` or ``onnxruntime-genai``; PYTHON has it installed, with the transformers that it asks
for, in an environment of its own. Files lie in ``FOLDER/EXPORTER VERSION/RECIPE``, for ``tools.foreign_files
--exports FOLDER``. A recipe whose exporter fails is told and left out.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
import transformers as hf

__all__ = ["RECIPES", "main"]

WORDS = 211

COMMON: Mapping[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 512, "pad_token_id": 3,
}  # fmt: skip
DECODER: Mapping[str, Any] = {**COMMON, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
WINDOWED: Mapping[str, Any] = {**DECODER, "head_dim": 16, "sliding_window": 24}
SEQUENCES: Mapping[str, Any] = {
    "vocab_size": WORDS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
VISION: Mapping[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 64,
    "patch_size": 8,
}  # fmt: skip

MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", COMMON),
    "bertqa": ("BertForQuestionAnswering", "BertConfig", COMMON),
    "berttok": ("BertForTokenClassification", "BertConfig", COMMON),
    "bertmlm": ("BertForMaskedLM", "BertConfig", COMMON),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": WORDS, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    ),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**COMMON, "pad_token_id": 1}),
    "mpnet": ("MPNetModel", "MPNetConfig", {**COMMON, "pad_token_id": 1}),
    "modernbert": (
        "ModernBertForSequenceClassification", "ModernBertConfig",
        {**COMMON, "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "deberta2": (
        "DebertaV2Model", "DebertaV2Config",
        {**COMMON, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 32}),
    "mistral": ("MistralForCausalLM", "MistralConfig", WINDOWED),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**WINDOWED, "query_pre_attn_scalar": 16}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", DECODER),
    "granite": ("GraniteForCausalLM", "GraniteConfig", DECODER),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0, "pad_token_id": 0},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**SEQUENCES, "max_position_embeddings": 512}),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "clip": (
        "CLIPModel", "CLIPConfig",
        {"projection_dim": 32, "vision_config": dict(VISION),
         "text_config": {**COMMON, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 2}},
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC", "Wav2Vec2Config",
        {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 96, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16,
         "num_conv_pos_embedding_groups": 4},
    ),
}  # fmt: skip
"""By name: the class, its configuration's, and what that says."""

OPTIMUM: Sequence[tuple[str, str, str, str | None]] = (
    ("bert-cls", "bert", "text-classification", None),
    ("bert-O2", "bert", "text-classification", "O2"),
    ("bert-O3", "bert", "text-classification", "O3"),
    ("bert-qa", "bertqa", "question-answering", None),
    ("bert-tok", "berttok", "token-classification", None),
    ("bert-mlm", "bertmlm", "fill-mask", None),
    ("distilbert-cls", "distilbert", "text-classification", None),
    ("roberta-O2", "roberta", "text-classification", "O2"),
    ("mpnet", "mpnet", "feature-extraction", None),
    ("modernbert", "modernbert", "text-classification", None),
    ("deberta2", "deberta2", "feature-extraction", None),
    ("gpt2", "gpt2", "text-generation-with-past", None),
    ("gpt2-O2", "gpt2", "text-generation-with-past", "O2"),
    ("llama", "llama", "text-generation-with-past", None),
    ("llama-O2", "llama", "text-generation-with-past", "O2"),
    ("qwen3", "qwen3", "text-generation-with-past", None),
    ("gemma2", "gemma2", "text-generation-with-past", None),
    ("t5", "t5", "text2text-generation-with-past", None),
    ("bart", "bart", "text2text-generation-with-past", None),
    ("vit", "vit", "image-classification", None),
    ("vit-O3", "vit", "image-classification", "O3"),
    ("clip", "clip", "zero-shot-image-classification", None),
    ("wav2vec2", "wav2vec2", "automatic-speech-recognition", None),
)
"""Name, model, task and optimisation (``optimum-cli export onnx --task TASK --optimize LEVEL``)."""

BUILDER: Sequence[tuple[str, str, str, str, tuple[str, ...]]] = (
    ("llama-fp32", "llama", "fp32", "cpu", ()),
    ("llama-int4", "llama", "int4", "cpu", ()),
    ("llama-int4-kmix", "llama", "int4", "cpu", ("int4_accuracy_level=4", "int4_algo_config=k_quant_mixed")),
    ("llama-hidden", "llama", "fp32", "cpu", ("include_hidden_states=true",)),
    ("llama-fp16-cuda", "llama", "fp16", "cuda", ()),
    ("llama-int4-cuda", "llama", "int4", "cuda", ()),
    ("llama-fp16-dml", "llama", "fp16", "dml", ()),
    ("llama-int4-web", "llama", "int4", "webgpu", ()),
    ("qwen2-int4", "qwen2", "int4", "cpu", ()),
    ("qwen3-int4", "qwen3", "int4", "cpu", ()),
    ("qwen3-int4-rtn", "qwen3", "int4", "cpu", ("int4_algo_config=rtn_last", "int4_block_size=64")),
    ("mistral-int4", "mistral", "int4", "cpu", ()),
    ("gemma2-fp32", "gemma2", "fp32", "cpu", ()),
    ("smollm3-fp32", "smollm3", "fp32", "cpu", ()),
    ("granite-fp32", "granite", "fp32", "cpu", ()),
)
"""Name, model, precision, device and further options (``python -m onnxruntime_genai.models.builder``)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes what is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m tools.exporters", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("exporter", choices=RECIPES)
    given = parser.parse_args(arguments)
    place = given.folder / f"{given.exporter} {version(given.exporter)}"
    with tempfile.TemporaryDirectory() as scratch:
        RECIPES[given.exporter](Path(scratch), place)
    return 0


def _saved(name: str, folder: Path) -> Path:
    """The model's folder: random weights, large enough for attention to matter, and a tokenizer of words."""
    if (folder / name).exists():
        return folder / name
    torch.manual_seed(0)
    kind, config, options = MODELS[name]
    model: Any = getattr(hf, kind)(getattr(hf, config)(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / name)
    if "vocab_size" in str(options):
        _tokenizer().save_pretrained(folder / name)
    return folder / name


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = [*special.values(), *(f"w{at}" for at in range(WORDS - len(special)))]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=special["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def _by_optimum(scratch: Path, place: Path) -> None:
    export: Any = importlib.import_module("optimum.exporters.onnx")
    for name, model, task, level in OPTIMUM:
        if not (place / name).exists():
            source = _saved(model, scratch)
            options = {"task": task, "optimize": level, "do_validation": False, "library_name": "transformers"}
            _try(name, partial(export.main_export, source, place / name, **options))


def _by_builder(scratch: Path, place: Path) -> None:
    sys.path.insert(0, str(distribution("onnxruntime-genai").locate_file("onnxruntime_genai/models")))
    builder: Any = importlib.import_module("builder")
    for name, model, precision, device, options in BUILDER:
        if not (place / name).exists():
            (place / name).mkdir(parents=True)
            where = ("", str(_saved(model, scratch)), str(place / name), precision, device, str(scratch / "cache"))
            more = builder.parse_extra_options(*where, list(options))
            _try(name, partial(builder.create_model, *where, **more))


def _try(name: str, make: Callable[[], Any]) -> None:
    try:
        make()
    except Exception:  # of any kind: the exporter's own
        logging.exception("%s", name)


RECIPES: Mapping[str, Callable[[Path, Path], None]] = {"optimum-onnx": _by_optimum, "onnxruntime-genai": _by_builder}
"""By the exporter's package."""

if __name__ == "__main__":
    sys.exit(main())
