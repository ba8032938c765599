"""Modules are equal in all but named settings, or not at all."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from twoheads.compiler.frontend.torch.repeats.equal_modules import Watch, differing_settings


class _Part(nn.Module):
    method: Any
    bound: Any
    x: Any

    def __init__(self, width: int = 4, **settings: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        for name, value in settings.items():
            setattr(self, name, value)

    def scale(self, x: float) -> float:
        return x


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(1, 2), (1, True), ([1, 2], [1, 3]), ({"a": 1}, {"b": 1}), (torch.ones(1), torch.ones(1)), (object(), object())],
)
def test_a_setting_that_differs_is_named(mine, theirs):
    assert differing_settings(_Part(x=mine), _Part(x=theirs)) == {("", "x")}
    assert differing_settings(_Part(x=mine), _Part(x=mine)) == set()


def test_functions_of_twins_are_the_same():
    first, second = _Part(), _Part()
    for part in (first, second):
        part.method, part.bound = part.scale, partial(id, part.inner)
    assert differing_settings(first, second) == set()
    second.bound = partial(id, first.inner)
    assert differing_settings(first, second) == {("", "bound")}


@pytest.mark.parametrize(
    "other", [_Part(width=5), _Part(y=1), nn.Linear(4, 4), nn.Sequential(_Part())], ids=lambda part: type(part).__name__
)
def test_other_parts_shapes_and_classes_are_no_twins(other):
    assert differing_settings(_Part(), other) is None


def test_a_hook_makes_a_module_one_of_its_own():
    hooked = _Part()
    hooked.inner.register_forward_hook(lambda *_: None)
    assert differing_settings(_Part(), hooked) is None


def test_a_watch_sees_what_is_read_while_it_lasts():
    part = _Part(x=3, y=4)
    with Watch([(_Part, "x"), (_Part, "y")]).installed() as _, pytest.raises(AttributeError):
        _ = _Part().x
    watch = Watch([(_Part, "x")])
    with watch.installed(), watch.reading(part) as read:
        part.x += 1
        _ = part.y
    assert read == {("", "x")}
    assert part.x == 4
    assert "x" not in vars(_Part)
