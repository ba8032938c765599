"""Mixtures of experts of the library are gathered by expert, exactly, or stay dense for a reason that is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from tests.mixtures import BLOCK, CHOSEN, EXPERTS, NAMES, mixture
from tests.tiers import with_long
from twoheads.compiler import compile_model, plan_model
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.hugging_face.grouped_experts import ExpertsChoice, find_gate, grouped_gates
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.operators.experts_op import Gate, experts_op
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.graphs.errors import CompileError

GROUPED = ExpertsChoice("grouped", BLOCK)


LIKE_OTHERS = {name for name in NAMES if name not in ("olmoe", "gpt_oss")}
"""Those two have bundles."""


@pytest.mark.parametrize(
    "name",
    with_long(
        sorted(LIKE_OTHERS),
        sorted(LIKE_OTHERS - {"deepseek_v2"}),
    ),
)
def test_library_models_are_captured_with_one_operator_a_mixture(name: str) -> None:
    source = load_source(mixture(name))
    found = capture(source, GROUPED)
    mixtures = [node for node in found.graph.cuts if getattr(node, "operator", "") == "experts"]
    assert len(mixtures) == (1 if name.startswith("deepseek") else 2)  # whose first layer has none
    assert found.dense_experts == {}
    prove_capture(source, found)


def _experts(name: str) -> Any:
    return next(part for part in mixture(name).modules() if hasattr(part, "_apply_gate"))


@pytest.mark.parametrize("name", NAMES)
def test_gates_are_found_by_experiment(name: str) -> None:
    oss = name == "gpt_oss"
    expected = Gate("swiglu", "pairs", 7.0, 1.702) if oss else Gate("silu", "halves")
    assert find_gate(_experts(name)) == expected


def test_an_expert_without_a_gate() -> None:
    config = hf.NemotronHConfig(hidden_size=16, moe_intermediate_size=8, n_routed_experts=4)
    assert find_gate(NemotronHExperts(config)) == Gate("relu_squared", "single")


class _Odd(nn.Module):
    """A gate that is nearly silu."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(rows) * 1.0001


def test_what_engines_do_not_have_stays_dense_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("mixtral")
    for part in model.modules():
        if hasattr(part, "_apply_gate"):
            monkeypatch.setitem(part._modules, "act_fn", _Odd())
    gates, reasons = grouped_gates(model, ExpertsChoice("auto", 4096))
    assert not gates
    assert set(reasons.values()) == {"has a gate between its products that engines do not have"}
    with pytest.raises(CompileError, match="a gate between its products"):
        grouped_gates(model, GROUPED)


def test_the_choice_goes_by_cost() -> None:
    tiny = plan_model(mixture("olmoe"), block_size=BLOCK)
    assert not tiny.mixtures
    sizes: dict[str, Any] = {"num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 1, "vocab_size": 64}
    config = hf.OlmoeConfig(**sizes, hidden_size=256, intermediate_size=512, num_attention_heads=4, pad_token_id=None)
    with torch.device("meta"):
        wide = hf.OlmoeForCausalLM(config)
    gates, reasons = grouped_gates(wide, ExpertsChoice("auto", 256))
    assert len(gates) == 1
    assert not reasons


def test_a_model_without_experts_can_not_be_grouped() -> None:
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = hf.LlamaConfig(**sizes, num_hidden_layers=1)
    with pytest.raises(CompileError, match="no mixture of experts"):
        compile_model(hf.LlamaForCausalLM(config).eval(), block_size=BLOCK, experts="grouped")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_operator_is_the_sum_of_the_chosen_experts(biased: bool, transposed: bool) -> None:
    random = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=random) for shape in ((EXPERTS, 12, 10), (EXPERTS, 10, 6)))
    hidden, share = (torch.randn((9, width), generator=random) for width in (10, CHOSEN))
    biases = [torch.randn((EXPERTS, width), generator=random) * biased for width in (12, 10)]
    bound: list[torch.Tensor | None] = [each if biased else None for each in biases]
    index = torch.randint(0, EXPERTS, (9, CHOSEN), generator=random)
    index[3, 1] = EXPERTS  # names none
    stored = (up.mT, down.mT) if transposed else (up, down)
    got = experts_op(
        hidden, index, share, stored[0], bound[0], stored[1], bound[1], "silu", "halves", 0.0, 0.0, transposed
    )
    want = torch.zeros_like(hidden)
    for row in range(9):
        for slot in range(CHOSEN):
            if (expert := int(index[row, slot])) < EXPERTS:
                gate, lift = (up[expert] @ hidden[row] + biases[0][expert]).chunk(2)
                made = down[expert] @ (nn.functional.silu(gate) * lift) + biases[1][expert]
                want[row] += share[row, slot] * made
    torch.testing.assert_close(got, want)
