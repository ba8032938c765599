"""Bundles under a window policy are exactly the original under that mask, and say that they are approximate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.end_to_end.agreement import assert_agrees, bundle_of
from tests.end_to_end.random_models import Features, RandomTransformer
from tests.export.verification.test_verifier import edited_program
from tests.tiers import with_long
from twoheads.compiler import compile_model, plan_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.export import verify, write_bundle
from twoheads.export.cli import main
from twoheads.export.verification.report import APPROXIMATION
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.runtime import load

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
EXAMPLES = (torch.zeros((1, 11), dtype=torch.int64),)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def masks_of(program: Program) -> list[str]:
    return [str(stage.mask) for stage in program.body if isinstance(stage, AttentionStage)]


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = compile_model(llama(), block_size=16, attention="window:17")
    return write_bundle(compiled, tmp_path_factory.mktemp("policy") / "b", generation=False)


@pytest.mark.parametrize("window", with_long((7, 17), [17]))
def test_a_window_is_hugging_faces_sliding_window(window: int, windowed: Path, tmp_path: Path) -> None:
    """The same weights in Mistral, whose own window has that size; one key more or less would be far off."""
    model = llama()
    mistral = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)).eval()
    mistral.load_state_dict(model.state_dict())
    policy = f"window:{window}"
    bundle = load(windowed) if window == 17 else bundle_of(model, tmp_path, block_size=16, attention=policy)
    for length in (1, 16, 50, 81):
        assert_agrees(bundle, load_source(mistral), length)


@pytest.mark.parametrize(
    ("mask", "policy", "same"),
    with_long(
        [
            ("causal", "window:10+sinks:3", "causal & (window(9, 0) | sinks(3))"),
            ("full", "window:10+sinks:20", "window(9, 9) | sinks(20)"),
            ("causal & chunk(20)", "window:10+sinks:3", "causal & chunk(20) & (window(9, 0) | sinks(3))"),
        ],
        [("causal & chunk(20)", "window:10+sinks:3", "causal & chunk(20) & (window(9, 0) | sinks(3))")],
        "test_a_policy_is_the_model_with_that_mask",
        "tests/graphs/masks/test_policy.py",
    ),
)
def test_a_policy_is_the_model_with_that_mask(mask: str, policy: str, same: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"example_inputs": EXAMPLES, "block_size": 16, "key_tile": 32}
    bundle = bundle_of(RandomTransformer(Features(masks=(mask,))), tmp_path, attention=policy, **options)
    source = load_source(RandomTransformer(Features(masks=(same,))), example_inputs=EXAMPLES)
    for length in (1, 33, 100):
        assert_agrees(bundle, source, length)


MODELS = {
    "llama": lambda: llama(),
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.3,
        )
    ).eval(),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=30)).eval(),
    "ours, softcap and learned sinks": lambda: RandomTransformer(Features(softcap=5.0, sinks=True)),
    "torch's kernel, a window beside full": lambda: RandomTransformer(
        Features(kernel="sdpa", masks=("causal", "bool window", "full"), layers=3, kv_heads=2)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    with_long(
        MODELS,
        ["torch's kernel, a window beside full"],
        "test_a_policy_is_the_model_with_that_mask",
    ),
)
def test_verify_compares_under_the_same_mask_and_tells_the_distance(name: str, tmp_path: Path) -> None:
    policy = "window:9" if name == "llama" else "window:20+sinks:4"
    torch.manual_seed(1)
    model = MODELS[name]()
    options: dict[str, Any] = {} if hasattr(model, "config") else {"example_inputs": EXAMPLES}
    bundle = write_bundle(
        compile_model(model, block_size=16, attention=policy, **options), tmp_path / "b", generation=False
    )
    report = verify(bundle, model, length=70, **options)
    assert report.passed, report
    assert report.approximations == (policy,)
    approximation = report.check("hidden", APPROXIMATION)
    # What the policy does to the model is far above what the compilation does to it.
    assert approximation.max_abs_error > 100 * report.check().max_abs_error
    assert approximation.relative > 0.01
    assert any("approximate" in warning for warning in report.warnings)


@pytest.mark.parametrize("lowering", ["stock", "oracle"])
def test_a_policy_holds_in_every_lowering(lowering: str, tmp_path: Path) -> None:
    compiled = compile_model(llama(), block_size=32, lowering=lowering, attention="window:20+sinks:4")
    report = verify(write_bundle(compiled, tmp_path / "b", generation=False), llama(), length=100)
    assert report.passed, report
    assert report.calls.engine_calls == report.calls.formula_calls
    with pytest.raises(CompileError, match="samples keys, which the lowering"):
        compile_model(llama(), lowering=lowering, attention="average:samples=1")


def test_within_the_window_nothing_is_lost(windowed: Path) -> None:
    report = verify(windowed, llama(), length=17)
    assert report.passed
    assert report.check("logits", APPROXIMATION).top1_agreement == 1.0
    assert report.check("hidden", APPROXIMATION).ratio <= 4
    assert verify(windowed, llama(), length=18).check("hidden", APPROXIMATION).max_abs_error > 0.01


@pytest.mark.parametrize(
    "mask", ["causal & window(15, 0)", "causal & window(17, 0)", "causal", "causal & (window(16, 0) | sinks(1))"]
)
def test_a_wrong_mask_under_the_policy_fails(mask: str, windowed: Path, tmp_path: Path) -> None:
    def edit(program: Program) -> Program:
        at = next(at for at, stage in enumerate(program.body) if isinstance(stage, AttentionStage))
        stage = program.body[at]
        assert isinstance(stage, AttentionStage)
        wrong = dataclasses.replace(stage, mask=parse_mask(mask))
        return dataclasses.replace(program, body=(*program.body[:at], wrong, *program.body[at + 1 :]))

    assert verify(windowed, llama(), length=60).passed
    assert not verify(edited_program(windowed, tmp_path / "wrong", edit), llama(), length=60).passed


def test_a_policy_that_changes_nothing_is_not_recorded() -> None:
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=30)).eval()
    assert compile_model(model, block_size=16, attention="window:30+sinks:4").approximations == ()
    assert compile_model(model, block_size=16, attention="window:29").approximations == ("window:29",)


def test_the_plan_of_a_source_follows_the_policy() -> None:
    program = plan_model(llama(), block_size=16, attention="window:9+sinks:2")
    assert masks_of(program) == ["causal & (window(8, 0) | sinks(2))"] * 2


def test_a_wrong_policy_is_refused() -> None:
    with pytest.raises(CompileError, match="'widow:9' is no term"):
        compile_model(llama(), attention="widow:9")


def test_the_commands_say_that_a_bundle_is_approximate(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, tokens = tmp_path / "b", tmp_path / "t.npy"
    np.save(tokens, np.arange(40) % 16)

    def told(*words: object) -> tuple[str, str]:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    policy = "window:12+sinks:2"
    out, _ = told("compile", tiny_llama, "-o", bundle, "--block-size", 16, "--attention", policy, "--no-generation")
    assert policy in out
    assert policy in told("inspect", bundle)[0]
    assert json.loads(told("inspect", bundle, "--json")[0])["approximations"] == [policy]
    out, err = told("run", bundle, "--tokens", tokens, "-o", tmp_path / "o.npz", "--report", tmp_path / "r.json")
    assert policy in out
    assert "warning: approximate" in err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["approximations"] == [policy]
    assert any("approximate" in warning for warning in report["warnings"])
    out, err = told("verify", bundle, "--against", tiny_llama, "--length", 40)
    assert "approximate: hidden states" in out
    assert "under the same mask: passed" in " ".join(out.split())
    assert "warning: approximate" in err
    planned = json.loads(
        told("plan", tiny_llama, "--length", 400, "--block-size", 16, "--attention", policy, "--json")[0]
    )
    assert planned["engine_calls"] == planned["formula_calls"]
    of_bundle = json.loads(told("plan", bundle, "--length", 400, "--json")[0])
    assert of_bundle == planned | {"precision": "float32"}
    assert main(["plan", str(bundle), "--length", "40", "--attention", "window:3"]) == 1
    assert main(["compile", str(tiny_llama), "-o", str(tmp_path / "c"), "--attention", "sinks:4"]) == 1


def test_the_runtime_warns_and_reports_the_policy(windowed: Path) -> None:
    with pytest.warns(UserWarning, match="--attention window:17"):
        report = load(windowed).run([1, 2, 3]).report
    assert report.approximations == ("window:17",)
