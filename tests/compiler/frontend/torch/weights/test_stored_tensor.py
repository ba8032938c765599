"""Tensors that stay in their files: the same numbers in every operator, and one of them in memory at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.weights import stored_tensor
from twoheads.compiler.frontend.torch.weights.stored_tensor import (
    StoredTensor,
    keeping_last_weight,
    parameters_as,
    read_tensor,
    unset_parameters,
)
from twoheads.compiler.ir.weights import Deferred, in_memory
from twoheads.graphs.errors import InternalError


class Disk:
    """Numbers as a file has them: each reading is a tensor of its own."""

    def __init__(self) -> None:
        self.reads = 0
        self.most = 0
        self._alive: list[weakref.ref[Tensor]] = []

    def stored(self, *shape: int, seed: int = 0) -> tuple[Tensor, StoredTensor]:
        numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return numbers, StoredTensor(shape, torch.float32, lambda: self._read(numbers))

    def _read(self, numbers: Tensor) -> Tensor:
        self.reads += 1
        made = numbers.clone()
        self._alive = [ref for ref in self._alive if ref() is not None] + [weakref.ref(made)]
        self.most = max(self.most, len(self._alive))
        return made


OPERATORS: list[Callable[[Tensor], Tensor]] = [
    lambda w: w + 1,
    lambda w: nn.functional.linear(torch.ones(3, 5), w),
    lambda w: nn.functional.embedding(torch.tensor([3, 0]), w),
    lambda w: w.t() @ torch.ones(4, 2),
    lambda w: w[1:3],
    lambda w: w.detach().double().sum(),
    lambda w: torch.stack([w, w]),
    lambda w: w.max(),
]


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_compute_with_the_numbers(operator: Callable[[Tensor], Tensor]) -> None:
    numbers, stored = Disk().stored(4, 5)
    with torch.no_grad():
        assert torch.equal(read_tensor(operator(nn.Parameter(stored))), operator(numbers))


def test_an_alias_and_a_cast_are_not_read() -> None:
    disk = Disk()
    _, stored = disk.stored(4, 5)
    half = nn.Parameter(stored).detach().to(torch.float64)
    assert isinstance(half, StoredTensor)
    assert half.dtype == torch.float64
    assert isinstance(stored[...], StoredTensor)
    assert disk.reads == 0


def test_what_can_be_read_by_rows_is_converted_so(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, asked = torch.randn(7, 5).bfloat16(), list[tuple[int, int]]()

    def rows(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return numbers[start:stop]

    def whole() -> Tensor:
        raise AssertionError("all of it was read at a time")

    monkeypatch.setattr(stored_tensor, "CONVERTED", 15)
    stored = StoredTensor((7, 5), torch.bfloat16, whole, None, None, rows)
    assert torch.equal(read_tensor(stored.detach().float()), numbers.float())
    assert asked == [(0, 3), (3, 6), (6, 7)]


def test_parameters_that_are_shared_have_one_key() -> None:
    _, stored = Disk().stored(4, 5)
    shared = nn.Parameter(stored)
    assert isinstance(shared, Deferred)
    assert shared.key == stored.key
    assert stored.key != Disk().stored(4, 5)[1].key
    assert torch.equal(in_memory(shared), stored.read())


def test_one_weight_is_in_memory_at_a_time() -> None:
    disk = Disk()
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(5)))
    for at, layer in enumerate(model):
        layer.weight = nn.Parameter(disk.stored(8, 8, seed=at)[1])
    with torch.no_grad(), keeping_last_weight():
        model(torch.ones(2, 8))
    gc.collect()
    assert disk.reads == 5
    assert disk.most == 1


def test_the_last_weight_is_kept_for_operators_that_follow_each_other() -> None:
    disk = Disk()
    numbers, stored = disk.stored(4, 5)
    with torch.no_grad(), keeping_last_weight():
        rows = [stored[at] for at in range(4)]
    assert disk.reads == 1
    assert torch.equal(torch.stack(rows), numbers)
    assert stored[0] is not None
    assert disk.reads == 2, "nothing is kept outside"


def test_numbers_of_another_shape_are_refused() -> None:
    wrong = StoredTensor((4, 5), torch.float32, lambda: torch.zeros(5, 4))
    with pytest.raises(InternalError, match="a stored weight is"):
        wrong.read()


def test_unset_parameters_are_ordinary_and_shared_as_before() -> None:
    disk = Disk()
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    model[0].weight = model[1].weight = nn.Parameter(disk.stored(5, 5)[1])
    with unset_parameters(model) as stored:
        assert sorted(stored) == ["0.weight", "1.weight"]
        assert model[0].weight is model[1].weight
        assert type(model[0].weight) is nn.Parameter
    assert isinstance(model[0].weight, StoredTensor)
    assert disk.reads == 0


def test_a_model_in_double_precision_and_back() -> None:
    disk = Disk()
    model = nn.Linear(5, 4)
    numbers, stored = disk.stored(4, 5)
    model.weight = nn.Parameter(stored)
    bias = model.bias.detach().clone()
    with torch.no_grad():
        with parameters_as(model, torch.float64):
            found = model(torch.ones(2, 5, dtype=torch.float64))
        assert torch.equal(found, nn.functional.linear(torch.ones(2, 5).double(), numbers.double(), bias.double()))
        assert torch.equal(model(torch.ones(2, 5)), nn.functional.linear(torch.ones(2, 5), numbers, bias))
