"""What a wrong compilation would do must be caught: bundles with one thing changed do not pass ``verify``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.tiers import with_long
from twoheads.compiler import CompiledModel, compile_model
from twoheads.compiler.frontend.torch.hugging_face import hooks
from twoheads.compiler.frontend.torch.operators.attention_op import attention_op
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program
from twoheads.runtime import load

LENGTH = 53
WINDOW = 9


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    config = hf.MistralConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=WINDOW,
    )
    module = hf.MistralForCausalLM(config).eval()
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return module


@pytest.fixture(scope="module")
def compiled(model: nn.Module) -> CompiledModel:
    return compile_model(model, block_size=16)


def _last_attention(program: Program, change: Callable[[AttentionStage], AttentionStage]) -> Program:
    """The program with its last attention changed."""
    at = max(i for i, stage in enumerate(program.body) if isinstance(stage, AttentionStage))
    stage = program.body[at]
    assert isinstance(stage, AttentionStage)
    return replace(program, body=(*program.body[:at], change(stage), *program.body[at + 1 :]))


def _masked(text: str) -> Callable[[Program], Program]:
    return lambda program: _last_attention(program, lambda stage: replace(stage, mask=parse_mask(text)))


def _scaled(program: Program) -> Program:
    engines = tuple(
        replace(engine, scale=engine.scale * 1.001) if isinstance(engine, AttentionEngine) else engine
        for engine in program.engines
    )
    return replace(program, engines=engines)


MUTATIONS: dict[str, Callable[[Program], Program]] = {
    "a window one position longer": _masked(f"causal & window({WINDOW}, -1)"),
    "a window one position shorter": _masked(f"causal & window({WINDOW - 2}, -1)"),
    "a mask that sees one position ahead": _masked(f"window({WINDOW - 1}, 1)"),
    "no window": _masked("causal"),
    "a scale wrong by a thousandth": _scaled,
    "a layer that attends with its keys as values": lambda program: _last_attention(
        program, lambda stage: replace(stage, value=stage.key)
    ),
    "a layer that is bypassed": lambda program: _last_attention(
        program, lambda stage: replace(stage, mask=parse_mask("window(0, 0)"))
    ),
}


def test_the_unchanged_bundle_passes(model: nn.Module, compiled: CompiledModel, tmp_path: Path) -> None:
    bundle = write_bundle(compiled, tmp_path / "bundle", generation=False)
    assert verify(bundle, model, length=LENGTH).passed


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_bundle_does_not_pass(name: str, model: nn.Module, compiled: CompiledModel, tmp_path: Path) -> None:
    wrong = replace(compiled, program=MUTATIONS[name](compiled.program))
    assert wrong.program != compiled.program
    report = verify(write_bundle(wrong, tmp_path / "bundle", generation=False), model, length=LENGTH)
    assert not report.passed
    assert report.worst.ratio > 4


def test_a_dropped_padding_mask_changes_the_result(compiled: CompiledModel, tmp_path: Path) -> None:
    bundle = load(write_bundle(compiled, tmp_path / "bundle", generation=False))
    ids = torch.randint(0, 67, (1, 40), generator=torch.Generator().manual_seed(1)).numpy()
    mask = (torch.arange(40) >= 7).long()[None].numpy()
    padded = bundle.run({"input_ids": ids, "attention_mask": mask}, output="hidden")
    dropped = bundle.run(ids, output="hidden")
    assert padded.array is not None
    assert dropped.array is not None
    assert abs(padded.array[8] - dropped.array[8]).max() > 1e-2


class _OwnAttention(nn.Module):
    """One layer as ``attend`` computes it from queries, keys and values ``[1, 2, n, 8]``."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.project, self.attend = nn.Embedding(20, 16), nn.Linear(16, 48), attend

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        q, k, v = self.project(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return x + self.attend(q, k, v).transpose(1, 2).reshape(1, -1, 16)


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: torch.relu(q @ k.mT) @ v,  # no softmax
        lambda q, k, v: (q @ k.mT).softmax(-2) @ v,  # over queries
        lambda q, k, v: (q @ k.mT + (q @ k.mT).tanh()).softmax(-1) @ v,  # scores twice
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v + v.mean(2, keepdim=True) * (q @ k.mT).amax(-1, keepdim=True),
        lambda q, k, v: (q @ k.mT).sigmoid() @ v,
        lambda q, k, v: q @ (k.softmax(-2).mT @ v),  # linear attention: a matrix of all tokens
    ],
)
def test_attention_that_is_none_is_refused(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CompileError):
        compile_model(
            _OwnAttention(attend).eval(), example_inputs=(torch.zeros((1, 11), dtype=torch.int64),), block_size=16
        )


# What a hook drops is caught where the captured graph is run against the library's own code


def _biased() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 67, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
    return _large(hf.T5EncoderModel(hf.T5Config(**sizes)))


def _capped() -> nn.Module:
    torch.manual_seed(0)
    config = hf.Gemma2Config(
        vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=2.0,
    )  # fmt: skip
    return _large(hf.Gemma2ForCausalLM(config))


def _large(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return module.eval()


DROPPED: dict[str, tuple[Callable[[], nn.Module], int, Any]] = {
    "the mask": (_capped, 3, None),
    "the bias": (_biased, 4, None),
    "the scale": (_capped, 6, 1.0),
    "the softcap": (_capped, 7, 0.0),
}


@pytest.mark.parametrize(
    "name",
    with_long(DROPPED, ["the bias"]),
)
def test_a_hook_that_drops_something_is_caught_at_compile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, position, instead = DROPPED[name]

    def dropping(*operands: Any) -> Any:
        given = list(operands)
        assert given[position] != instead if isinstance(instead, float) else given[position] is not None
        given[position] = instead
        return attention_op(*given)

    module = make()
    compile_model(module, block_size=16)
    monkeypatch.setattr(hooks, "attention_op", dropping)
    with pytest.raises(CompileError, match="computes something else than its captured graph"):
        compile_model(module, block_size=16)


@pytest.mark.parametrize(
    "name",
    with_long(("the mask", "the softcap"), ["the mask"]),
)
def test_what_compiles_in_spite_of_that_does_not_verify(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, position, instead = DROPPED[name]
    module = make()
    with monkeypatch.context() as broken:
        broken.setattr(
            hooks,
            "attention_op",
            lambda *given: attention_op(*given[:position], instead, *given[position + 1 :]),
        )
        broken.setattr("twoheads.compiler.original.prove_capture.prove_capture", lambda *_: None)
        bundle = write_bundle(compile_model(module, block_size=16), tmp_path / "bundle", generation=False)
    report = verify(bundle, module, length=LENGTH)
    assert not report.passed
    assert report.finding is None
    assert report.worst.ratio > 4
