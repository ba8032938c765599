"""Whatever mixes tokens outside of attention is refused at compile time, and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.compiler.small_models import EXAMPLES, WIDTH, OneLayer, llama
from twoheads.compiler import compile_model
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import SequenceStage

KERNEL = torch.randn(WIDTH, WIDTH, 3, generator=torch.Generator().manual_seed(0))

MIXING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "cumulative sum": (lambda x: x.cumsum(1), "cumsum"),
    "shift": (lambda x: x.roll(1, 1), "roll"),
    "sort": (lambda x: x.sort(1).values, "sort"),
    "length as a fill": (lambda x: x + torch.full((1, x.shape[1], 1), float(x.shape[1])), "number of tokens|fixes"),
    "count of constants": (lambda x: x + torch.ones(x.shape[1]).softmax(0)[None, :, None], "constants"),
    "count of what never happens": (lambda x: x + (x[..., :1] > 1e6).float().cumsum(1), "cumsum"),
    "count in the shape of tokens": (lambda x: x + torch.ones_like(x[..., :1]).cumsum(1).square(), "cumsum"),
    "squared count": (lambda x: x + torch.ones(x.shape[1]).cumsum(0).square()[None, :, None], "constants"),
    "tokens as features": (lambda x: (x @ x.mT) @ x, "every pair of tokens"),
    "tokens regrouped": (lambda x: x.reshape(1, WIDTH, -1).mT, "mixes tokens|not one row"),
    "normalisation over tokens": (lambda x: x / x.norm(dim=1, keepdim=True), "norm"),
}

MOVING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over tokens": lambda x: x - x.mean(1, keepdim=True),
    "softmax over tokens": lambda x: x.softmax(1),
    "reversal": lambda x: x.flip(1),
    "convolution": lambda x: torch.nn.functional.conv1d(x.mT, KERNEL, padding=1).mT,
    "first token": lambda x: x + x[:, :1],
    "largest token": lambda x: x + x.amax(1, keepdim=True),
    "count": lambda x: x + (x[..., :1] > 0.5).cumsum(1),
    "rotation": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
}
"""What sequence operators express."""


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("place", ["before", "after"])
def test_mixing_is_refused_and_named(name: str, place: str) -> None:
    operation, named = MIXING[name]
    module = OneLayer(before=operation) if place == "before" else OneLayer(after=operation)
    with pytest.raises(CompileError, match=named):
        compile_model(module, example_inputs=EXAMPLES, block_size=16)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("place", ["before", "after"])
def test_known_row_movement_becomes_stages_of_the_host(name: str, place: str) -> None:
    operation = MOVING[name]
    module = OneLayer(before=operation) if place == "before" else OneLayer(after=operation)
    program = compile_model(module, example_inputs=EXAMPLES, block_size=16).program
    assert any(isinstance(stage, SequenceStage) for stage in program.body)


def test_a_length_in_arithmetic_is_an_input() -> None:
    module = OneLayer(before=lambda x: x / x.shape[1])
    program = compile_model(module, example_inputs=EXAMPLES, block_size=16).program
    assert [entry.axis for entry in program.inputs if entry.source == "length"] == ["n"]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.softmax(-1),
        lambda x: x.flip(-1),
        lambda x: torch.nn.functional.layer_norm(x, (WIDTH,)),
        lambda x: x + torch.arange(x.shape[1])[None, :, None] / 7.0,
        lambda x: x + torch.zeros(1, x.shape[1], 1),
        lambda x: torch.cat([x[..., 3:], x[..., :3]], -1),
        lambda x: x.reshape(-1, WIDTH).reshape(1, -1, WIDTH),
        lambda x: x.sort(-1).values,
    ],
)
def test_what_stays_within_a_token_passes(operation: Callable[[Tensor], Tensor]) -> None:
    compiled = compile_model(OneLayer(before=operation), example_inputs=EXAMPLES, block_size=16)
    assert len(compiled.regions) == 2


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"block_size": 12}, "block_size"),
        ({"block_size": 8}, "block_size"),
        ({"block_size": 8192}, "block_size"),
        ({"block_size": 64, "key_tile": 96}, "key_tile"),
        ({"block_size": 64, "key_tile": 32}, "key_tile"),
        ({"lowering": "magic"}, "lowering"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(options: dict[str, object], where: str) -> None:
    with pytest.raises(CompileError, match=where):
        compile_model("/nowhere", **options)  # type: ignore[arg-type]


def test_phases_are_told() -> None:
    phases: list[str] = []
    compile_model(llama(num_hidden_layers=1), block_size=16, progress=phases.append)
    assert phases == [
        "loading the model",
        "capturing its graph",
        "checking that regions are token-wise",
        "lowering to a block program",
    ]
