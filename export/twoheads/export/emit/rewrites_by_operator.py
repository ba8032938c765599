"""The ONNX exporter's optimiser, which tries each of its rewrites only where the operator stands that it ends in."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

__all__ = ["rewrites_by_operator"]


@contextmanager
def rewrites_by_operator() -> Generator[None]:
    """Within it, ``torch.onnx.export`` makes the same models sooner.

    Its optimiser prepares a match of every rewrite at every node, before it looks whether the node's operator is the
    one that the rewrite ends in: that is half of its time, for nothing. What holds the rewrites is not public: a
    release that does it otherwise does it at its own pace.
    """
    guarded = _guarded()
    if guarded is None:
        yield
        return
    from onnxscript import rewriter

    owner: Any = rewriter
    original = owner._DEFAULT_REWRITE_RULES
    owner._DEFAULT_REWRITE_RULES = guarded
    try:
        yield
    finally:
        owner._DEFAULT_REWRITE_RULES = original


@lru_cache
def _guarded() -> tuple[Any, ...] | None:
    """The optimiser's rewrites; ``None`` where this release of onnxscript has none of this shape."""
    try:
        from onnxscript import rewriter
        from onnxscript.rewriter import _matcher

        owner: Any = rewriter
        return tuple(_at_its_operator(rule, _matcher.SimplePatternMatcher) for rule in owner._DEFAULT_REWRITE_RULES)
    except (ImportError, AttributeError, TypeError):
        return None


def _at_its_operator(rule: Any, matcher: type[Any]) -> Any:
    """The same rewrite, not tried at other operators: the matcher compares a pattern's last operator first."""
    pattern = rule._target_pattern
    if type(rule._matcher) is not matcher or not pattern.has_single_output_node:
        return rule
    last, tried = pattern.output_node.op, rule.try_rewrite
    fits = lru_cache(last.matches)

    def try_rewrite(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        return tried(model, graph, node, **options) if fits(node.op_type) else None

    guarded = copy.copy(rule)
    guarded.try_rewrite = try_rewrite
    return guarded
