"""Noise floors from as many evaluations as it takes, and what a model is whose evaluations disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs
from twoheads.compiler.original import torch_original
from twoheads.export import verify, write_bundle
from twoheads.export.verification.noise_floor import SUSPECT, Floors
from twoheads.graphs.program.program import Pooling

ROWS = np.linspace(1, 2, 12, dtype=np.float32).reshape(4, 3)


def test_a_floor_that_may_be_luck_is_suspect_until_an_evaluation_is_further_away() -> None:
    floors = Floors.of((ROWS, ROWS), (ROWS, ROWS), None, pooled_logits=False)
    assert floors.suspect
    wider = floors.with_evaluation(ROWS * (1 + 4 * SUSPECT), ROWS * (1 + 4 * SUSPECT))
    assert not wider.suspect
    assert wider.hidden_floor.value > floors.hidden_floor.value
    assert wider.with_evaluation(ROWS, ROWS).hidden_floor == wider.hidden_floor


def test_few_logits_of_a_pooled_head_are_suspect_however_far_apart() -> None:
    further = ROWS * np.float32(1.01)
    assert Floors.of((ROWS, ROWS[:1]), (further, further[:1]), None, pooled_logits=True).suspect
    assert not Floors.of((ROWS, ROWS), (further, further), None, pooled_logits=False).suspect


def test_embeddings_get_every_evaluation_too() -> None:
    floors = Floors.of((ROWS, None), (ROWS, None), Pooling("mean", normalize=False), pooled_logits=False)
    wider = floors.with_evaluation(ROWS * np.float32(1.01), None)
    assert floors.final_embedding is not None
    assert wider.final_embedding is not None
    assert wider.final_embedding.value > 1000 * floors.final_embedding.value


def test_an_architecture_whose_two_evaluations_are_the_same_code_passes(tmp_path: Path) -> None:
    """GPT-OSS has learned sinks, and so no fused form; its bundle failed by a floor of nearly nothing."""
    torch.manual_seed(0)
    config = hf.GptOssConfig(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=9, num_local_experts=4,
    )  # fmt: skip
    model = hf.GptOssForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    bundle = write_bundle(compile_model(model, block_size=16), tmp_path / "b", generation=False)
    report = verify(bundle, model, length=200)
    assert report.passed, report
    assert report.finding is None


def test_evaluations_that_are_of_two_models_are_a_finding_and_no_floor(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(compile_model(tiny_llama, block_size=16), tmp_path / "b", generation=False)
    run = hugging_face_outputs

    def other_model_when_eager(module: Any, inputs: Any, **options: Any) -> Any:
        outputs = run(module, inputs, **options)
        if module.config._attn_implementation != "eager":
            return outputs
        return {name: tensor * 1.5 for name, tensor in outputs.items()}

    monkeypatch.setattr(torch_original, "hugging_face_outputs", other_model_when_eager)
    report = verify(bundle, tiny_llama, length=40)
    assert report.worst.ratio < 4
    assert not report.passed
    assert report.finding is not None
    assert "50.00%" in report.finding
