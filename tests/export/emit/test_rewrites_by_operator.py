"""The optimiser of the ONNX exporter gives the same files when it does not try what can't fit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from onnxscript import rewriter
from onnxscript.rewriter import _matcher, _rewrite_rule

from tests.export.emit.test_decomposed import _all_of_them, _regions
from twoheads.export.emit import rewrites_by_operator as module
from twoheads.export.emit import tokenwise_from_torch
from twoheads.export.emit.rewrites_by_operator import rewrites_by_operator
from twoheads.export.emit.tokenwise_from_torch import tokenwise_model

OWNER: Any = rewriter


@contextmanager
def nothing() -> Generator[None]:
    yield


@pytest.fixture(autouse=True)
def anew() -> Generator[None]:
    module._guarded.cache_clear()
    yield
    module._guarded.cache_clear()


@pytest.mark.parametrize("rows", [1, 16])
def test_the_files_are_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []
    known = _rewrite_rule.RewriteRule.try_rewrite

    def told(*arguments: Any, **options: Any) -> Any:
        found = known(*arguments, **options)
        tried.append(found is not None)
        return found

    monkeypatch.setattr(_rewrite_rule.RewriteRule, "try_rewrite", told)
    regions = _regions(_all_of_them(), rows)
    quick = [tokenwise_model(*region).SerializeToString() for region in regions]
    few, rewritten = len(tried), sum(tried)
    monkeypatch.setattr(tokenwise_from_torch, "rewrites_by_operator", nothing)
    tried.clear()
    assert quick == [tokenwise_model(*region).SerializeToString() for region in regions]
    assert rewritten == sum(tried) > 0
    assert few < len(tried) / 5


def test_what_another_matcher_decides_is_tried_everywhere() -> None:
    (rule, *_) = OWNER._DEFAULT_REWRITE_RULES
    assert module._at_its_operator(rule, _matcher.SimplePatternMatcher) is not rule
    assert module._at_its_operator(rule, _matcher.PatternMatcher) is rule


def test_the_rewrites_are_as_before_afterwards() -> None:
    before = OWNER._DEFAULT_REWRITE_RULES
    with rewrites_by_operator():
        assert len(OWNER._DEFAULT_REWRITE_RULES) == len(before)
        assert OWNER._DEFAULT_REWRITE_RULES is not before
    assert OWNER._DEFAULT_REWRITE_RULES is before


def test_where_there_is_no_such_list_the_exporter_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(OWNER, "_DEFAULT_REWRITE_RULES")
    with rewrites_by_operator():
        assert not hasattr(OWNER, "_DEFAULT_REWRITE_RULES")
