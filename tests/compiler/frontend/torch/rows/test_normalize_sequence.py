"""Row movement in exported graphs: recognised, rewritten, and still the same function at every length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional

from twoheads.compiler.frontend.torch.rows.normalize_sequence import normalize_sequence
from twoheads.compiler.frontend.torch.rows.sequence_ops import SEQUENCE_OPERATORS, take

WIDTH = 6


class Module(nn.Module):
    """``function(module, x, ids)`` on ``x [1, n, 6]`` and ``ids [1, n]``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.weight = nn.Parameter(torch.randn(4, WIDTH // 2, 3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.function(self, x, ids)

    def convolve(self, x: Tensor, **options: Any) -> Tensor:
        return functional.conv1d(x.transpose(1, 2), self.weight, self.bias, groups=2, **options)


def last_not_padded(_: Module, x: Tensor, ids: Tensor) -> Tensor:
    places = torch.arange(ids.shape[-1], dtype=torch.int32) * (ids != 0).to(torch.int32)
    return x[torch.arange(1), places.argmax(-1)]


def learned_pooling(_: Module, x: Tensor, __: Tensor) -> Tensor:
    return (x * functional.softmax(x.sum(-1, keepdim=True), 1)).sum(1)


CASES: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "shifted up": (lambda _, x, __: functional.pad(x[:, 1:], (0, 0, 0, 1)), ["take"]),
    "shifted down": (lambda _, x, __: functional.pad(x[:, :-1], (0, 0, 1, 0)), ["take"]),
    "first row hidden": (lambda _, x, __: functional.pad(x[:, 1:], (0, 0, 1, 0)), ["take", "take"]),
    "last row hidden": (lambda _, x, __: functional.pad(x[:, :-1], (0, 0, 0, 1)), ["take", "take"]),
    "first row": (lambda _, x, __: x[:, 0], ["take"]),
    "last row": (lambda _, x, __: x[:, -1], ["take"]),
    "third row": (lambda _, x, __: x[:, 2], ["take", "take"]),
    "last but one": (lambda _, x, __: x[:, -2], ["take", "take"]),
    "without the first": (lambda _, x, __: x[:, 1:], ["take"]),
    "without both ends": (lambda _, x, __: x[:, 2:-1], ["take"]),
    "every other": (lambda _, x, __: x[:, 1::2], ["take"]),
    "reversed": (lambda _, x, __: x.flip(1), ["take"]),
    "shifted": (lambda _, x, __: functional.pad(x, (0, 0, 1, -1)), ["take"]),
    "a class token": (lambda m, x, _: torch.cat([m.cls.expand(1, -1, -1), x], 1), ["concat"]),
    "a weight as a class token": (lambda m, x, _: torch.cat([m.cls, x], 1), ["concat"]),
    "shifted behind a weight": (lambda m, x, _: torch.cat([m.cls, x[:, :-1]], 1), ["concat", "take"]),
    "shifted before a weight": (lambda m, x, _: torch.cat([x[:, 2:], m.cls, m.cls], 1), ["concat", "take"]),
    "turned": (lambda _, x, __: torch.cat([x[:, 1:], x[:, :1]], 1), ["take", "concat", "take"]),
    "mean": (lambda _, x, __: x.mean(1), ["mean"]),
    "mean, kept": (lambda _, x, __: x.mean(1, keepdim=True), ["mean"]),
    "mean over all": (lambda _, x, __: x.mean((1, 2)), ["mean"]),
    "sum": (lambda _, x, __: x.sum(1), ["sum"]),
    "count": (lambda _, __, ids: ids.ne(1).sum(1, keepdim=True) * ids, ["cast", "sum"]),
    "amax": (lambda _, x, __: x.amax(1), ["max"]),
    "max": (lambda _, x, __: x.max(1).values, ["max"]),
    "smallest of all": (lambda _, x, __: x.min(), ["min"]),
    "average pooling": (lambda _, x, __: functional.adaptive_avg_pool1d(x.transpose(1, 2), 1), ["mean"]),
    "learned pooling": (learned_pooling, ["max", "sum", "sum"]),
    "convolution": (lambda m, x, _: m.convolve(x, padding=1), ["take"] * 3),
    "convolution with a stride": (lambda m, x, _: m.convolve(x, padding=2, stride=2), ["take"] * 3),
    "causal convolution": (lambda m, x, _: m.convolve(x, padding=2)[..., : x.shape[1]], ["take"] * 4),
    "windows": (lambda _, x, __: functional.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1), ["take"] * 4),
    "every other window": (lambda _, x, __: x.unfold(1, 4, 2), ["take"] * 4),
    "dilated convolution": (lambda m, x, _: m.convolve(x, padding="same", dilation=2), ["take"] * 3),
    "positions without padding": (
        lambda _, __, ids: torch.cumsum(ids.ne(1).int(), 1).type_as(ids) * ids.ne(1).int() + 1,
        ["not_equal", "cast", "cumsum"],
    ),
    "last token that is no padding": (last_not_padded, ["not_equal", "cast", "mul", "argmax", "take_at"]),
    "running sum of features": (lambda _, x, __: x.cumsum(1), []),
    "three rows of any number": (lambda _, x, __: x[:, :3], []),
    "along features": (lambda _, x, __: torch.cat([x[..., 1:].flip(-1), x.mean(-1, keepdim=True)], -1), []),
}


@pytest.mark.parametrize("name", CASES)
def test_row_movement_is_recognised_and_stays_the_same_function(name: str) -> None:
    function, expected = CASES[name]
    module, exported = Module(function), exported_graph(Module(function))
    graph = exported.graph_module.graph
    assert bool(normalize_sequence(graph)) == bool(expected)
    assert [SEQUENCE_OPERATORS[node.target] for node in graph.nodes if node.target in SEQUENCE_OPERATORS] == expected
    for length in (29, 12, 5):
        x, ids = inputs(length)
        torch.testing.assert_close(run(exported, x, ids), module(x, ids), msg=f"at {length}")


@pytest.mark.parametrize("name", ["shifted behind a weight", "turned"])
def test_a_shift_leaves_something_of_an_input_of_one_token(name: str) -> None:
    module, exported = Module(CASES[name][0]), exported_graph(Module(CASES[name][0]))
    normalize_sequence(exported.graph_module.graph)
    cuts = [node.kwargs["add"] for node in exported.graph_module.graph.nodes if node.target is take]
    assert cuts == [-1]  # of the whole, which has two rows then
    x, ids = inputs(1)
    torch.testing.assert_close(run(exported, x, ids), module(x, ids))


def test_a_second_pass_changes_nothing() -> None:
    graph = exported_graph(Module(CASES["last token that is no padding"][0])).graph_module.graph
    assert normalize_sequence(graph)
    assert not normalize_sequence(graph)


def test_scores_of_every_pair_are_left_for_the_attention_to_be_missed() -> None:
    graph = exported_graph(Module(lambda _, x, __: functional.softmax(x @ x.mT, -1) @ x)).graph_module.graph
    assert not normalize_sequence(graph)


def inputs(length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, length, WIDTH), torch.arange(length)[None] % 5


def exported_graph(module: Module) -> ExportedProgram:
    return export(module, inputs(29), dynamic_shapes=({1: Dim.AUTO}, {1: Dim.AUTO}))


def run(exported: ExportedProgram, x: Tensor, ids: Tensor) -> Tensor:
    stored = {**exported.state_dict, **exported.constants}
    given = iter((x, ids))
    arguments = [
        stored[spec.target] if spec.target in stored else next(given) for spec in exported.graph_signature.input_specs
    ]
    (result,) = fx.Interpreter(nn.Module(), graph=exported.graph_module.graph).run(*arguments)
    return result
