"""Padded batches and packed documents against the library's own models under its own masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
import transformers as hf

from tests.end_to_end.agreement import bundle_of
from tests.tiers import with_long
from tools.zoo.exporting import VOCABULARY, FirstOutput, export_model
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.runtime import load

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
PLAIN: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
SMALL_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**SIZES)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=2)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=9)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **PLAIN)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            **PLAIN,
        )
    ),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**SIZES, pad_token_id=1)),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, pad_token_id=None)
    ),
    "gpt2 classifier": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**SMALL_GPT2, pad_token_id=1)),
    "t5": lambda: hf.T5Model(
        hf.T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    ),
}
WHOLE = ("gpt2 classifier", "t5")
"""Models that have no row of output for each token of the padded input."""
BLOCK, LENGTH = 16, 41
SIDES = ((0, 0), (0, 36), (29, 0), (5, 7))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    made: dict[str, tuple[Any, Any]] = {}

    def get(name: str) -> tuple[Any, Any]:
        if name not in made:
            torch.manual_seed(0)
            model = MODELS[name]().eval()
            for parameter in model.parameters():
                if parameter.ndim > 1:  # the initial weights are so small that attention would hardly matter
                    torch.nn.init.normal_(parameter, std=0.15)
            made[name] = model, bundle_of(model, tmp_path_factory.mktemp(name), block_size=BLOCK)
        return made[name]

    return get


def original(model: Any, tokens: Any, output: str, **arguments: Any) -> Any:
    with torch.no_grad():
        base = model if output == "logits" else getattr(model, "base_model", model)
        found = base(torch.from_numpy(tokens), **arguments)
    return (found.logits if output == "logits" else found.last_hidden_state).numpy()


def batch() -> tuple[Any, Any]:
    """Four inputs of one length, padded on no side, the right, the left and both, and their mask."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (len(SIDES), LENGTH))
    masks = np.ones_like(tokens)
    for mask, (left, right) in zip(masks, SIDES, strict=True):
        mask[:left] = 0
        mask[LENGTH - right :] = 0
    return np.where(masks == 1, tokens, 1), masks  # 1 is RoBERTa's padding, which it numbers by


def close(found: Any, want: Any) -> None:
    np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    "name",
    with_long(sorted(MODELS.keys() - set(WHOLE)), ("bert", "bloom", "llama", "opt")),
)
def test_a_padded_batch_is_the_librarys(compiled: Any, name: str) -> None:
    model, bundle = compiled(name)
    tokens, masks = batch()
    outputs = ["hidden"] if name in ("bert", "roberta") else ["hidden", "logits"]
    for output in outputs:
        want = original(model, tokens, output, attention_mask=torch.from_numpy(masks))
        unmasked = original(model, tokens, output)
        assert np.abs(want - unmasked)[masks == 1].max() > 1e-3 * np.abs(want).max(), "the mask matters"
        results = bundle.run({"input_ids": tokens, "attention_mask": masks}, output=output)
        for result, rows, mask in zip(results, want, masks, strict=True):
            close(result.array[mask == 1], rows[mask == 1])
            assert not result.array[mask == 0].any()
            assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
        alone = bundle.run(tokens[2], output=output, attention_mask=masks[2])
        close(alone.array[masks[2] == 1], want[2][masks[2] == 1])


@pytest.mark.parametrize("name", with_long(("bert", "llama", "gpt2", "opt"), ("bert", "llama", "opt")))
def test_holes_are_the_librarys(compiled: Any, name: str) -> None:
    model, bundle = compiled(name)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, LENGTH)
    mask = (np.random.default_rng(2).random(LENGTH) > 0.3).astype(np.int64)
    mask[0] = 1  # the library gives a first row that sees nothing the mean of all values
    want = original(model, tokens[None], "hidden", attention_mask=torch.from_numpy(mask[None]))[0]
    close(bundle.run(tokens, output="hidden", attention_mask=mask).array[mask == 1], want[mask == 1])


@pytest.mark.parametrize(
    "name",
    with_long(
        ("bert", "llama", "mistral", "gpt2"),
        ("bert", "llama"),
        "tests/runtime/documents/test_packed_documents.py",
    ),
)
def test_documents_are_blocks_on_the_masks_diagonal(compiled: Any, name: str) -> None:
    model, bundle = compiled(name)
    lengths = [3, 20, 1, 11, 6]
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, sum(lengths))
    number = np.repeat(np.arange(len(lengths)), lengths)
    at = np.concatenate([np.arange(length) for length in lengths])
    i, j = np.arange(len(tokens))[:, None], np.arange(len(tokens))[None, :]
    visible = number[:, None] == number[None, :]
    if name != "bert":
        visible &= j <= i
    if name == "mistral":
        visible &= i - j < 9
    bias = torch.from_numpy(np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32))[None, None]
    positions = torch.from_numpy(at[None])
    want = original(model, tokens[None], "hidden", attention_mask=bias, position_ids=positions)[0]
    result = bundle.run(tokens, output="hidden", documents=lengths)
    close(result.array, want)
    assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
    assert result.report.requests == len(lengths)
    parts = [bundle.run(part, output="hidden").array for part in np.split(tokens, np.cumsum(lengths)[:-1])]
    close(result.array, np.concatenate(parts))
    close(bundle.run(tokens, output="hidden", documents=number).array, result.array)


def test_what_a_tokenizer_gives_is_an_input(compiled: Any) -> None:
    _, bundle = compiled("bert")
    tokens, masks = batch()
    encoding = hf.BatchEncoding({"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(masks)})
    results = bundle.run(encoding, output="hidden")
    for result, row, mask in zip(results, tokens, masks, strict=True):
        close(result.array, bundle.run(row, output="hidden", attention_mask=mask).array)


def test_positions_that_add_up_the_mask_count_real_tokens(compiled: Any) -> None:
    sources = {name: {entry.source for entry in compiled(name)[1].program.inputs} for name in ("opt", "llama")}
    assert "counts" in sources["opt"]
    assert "positions" in sources["llama"]
    assert "counts" not in sources["llama"]


@pytest.mark.parametrize(
    ("name", "dynamo"),
    with_long(
        [("bert", False), ("llama", True), ("opt", False), ("opt", True)],
        [("bert", False), ("opt", False)],
        "tests/end_to_end/test_onnx_zoo.py::test_a_file_of_the_zoo_runs_at_any_length",
    ),
)
def test_a_padded_batch_is_the_onnx_files(compiled: Any, tmp_path: Path, name: str, dynamo: bool) -> None:
    model, output = compiled(name)[0], "last_hidden_state" if name == "bert" else "logits"
    opset = 18 if dynamo else 17
    file = export_model(FirstOutput(model), tmp_path / "model.onnx", output=output, opset=opset, dynamo=dynamo)
    bundle = load(write_bundle(compile_model(file, block_size=BLOCK), tmp_path / "bundle", generation=False))
    tokens, masks = batch()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    want: Any = session.run(None, {"input_ids": tokens, "attention_mask": masks})[0]
    results: Any = bundle.run({"input_ids": tokens, "attention_mask": masks})
    for result, rows, mask in zip(results, want, masks, strict=True):
        close(result.array[mask == 1], rows[mask == 1])


def test_a_classifier_looks_at_real_tokens(compiled: Any) -> None:
    model, bundle = compiled("gpt2 classifier")
    tokens, masks = batch()
    tokens[masks == 1] = np.maximum(tokens[masks == 1], 2)  # the library finds the last token that is no padding
    want = original(model, tokens[:2], "logits", attention_mask=torch.from_numpy(masks[:2]))
    results = bundle.run({"input_ids": tokens[:2], "attention_mask": masks[:2]}, output="logits")
    for result, row in zip(results, want, strict=True):
        close(result.array, row)


def test_a_padded_source_of_a_decoder(compiled: Any) -> None:
    model, bundle = compiled("t5")
    tokens, masks = batch()
    target = np.random.default_rng(4).integers(0, VOCABULARY, (len(tokens), 23))
    given = {"input_ids": tokens, "decoder_input_ids": target, "attention_mask": masks}
    with torch.no_grad():
        want = model(**{name: torch.from_numpy(array) for name, array in given.items()}).last_hidden_state.numpy()
    for result, rows, mask in zip(bundle.run(given, output="hidden"), want, masks, strict=True):
        close(result.array, rows)
        assert result.report.lengths == {"n": 23, "m": mask.sum()}
        assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls
