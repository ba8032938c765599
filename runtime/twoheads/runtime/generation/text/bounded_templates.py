"""A sandbox for templates that come with models: Jinja's own, with an end to loops and to the size of texts.

Jinja's sandbox keeps a template from everything but its arguments. It does not keep it from running for ever (a loop
within a loop) or from filling the memory (a text that is doubled forty times), and a model may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["LONGEST", "MOST_STEPS", "BoundedEnvironment"]

MOST_STEPS = 1_000_000
"""Passes through loops and calls of macros in a conversation: a few for every message, and seconds of time."""

LONGEST = 1 << 26
"""Characters of a text, or entries of a list, that an operator or a filter gives."""

MOST_BITS = 1 << 16
"""Of a whole number."""

WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{6,}|\*)")
"""In a text that formats numbers, a width that nobody needs."""

FILTERS = ("center", "format", "indent", "join", "replace", "wordwrap", "xmlattr", "list", "batch", "slice")
"""Whose results may be larger than what they are given."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; :meth:`begin` starts a conversation."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps = 0
        for name in FILTERS:
            self.filters[name] = _checked(self.filters[name])

    def begin(self) -> None:
        """From now on, :data:`MOST_STEPS` steps."""
        self._steps = 0

    def step(self) -> str:
        """Counts a pass through a loop.

        Raises:
            TemplateRuntimeError: There were too many.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise TemplateRuntimeError(f"it loops more than {MOST_STEPS} times")
        return ""

    def join_texts(self, *parts: Any) -> str:
        """What ``~`` gives."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805 - Jinja's own names
        """Calls, with widths of texts that are none refused."""
        if any(isinstance(given, int) and abs(given) > LONGEST for given in arguments):
            raise TemplateRuntimeError("it calls for more than any text has")
        __self.step()
        return super().call(__context, __obj, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, whose result is not too large."""
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, Sequence) and isinstance(times, int):
                    _check_size(len(text) * max(times, 0))
        elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            _check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str) and WIDTH.search(left):
            raise TemplateRuntimeError("it calls for more than any text has")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            if operator in ("*", "**") and bits > MOST_BITS:
                raise TemplateRuntimeError("it computes a number that is too large")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: Any = _Bounding().visit(super()._parse(source, name, filename))
        return parsed  # type: ignore[no-any-return]


class _Bounding(NodeTransformer):
    """Has loops and macros count their steps, and texts joined where their size is looked at."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja finds it by its name
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step", [], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("join_texts", node.nodes, node.lineno)


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    method = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(method, arguments, [], None, None, lineno=line)


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        if any(isinstance(given, int) and abs(given) > LONGEST for given in (*arguments, *named.values())):
            raise TemplateRuntimeError("it calls for more than any text has")
        found = original(*arguments, **named)
        _check_size(len(found) if isinstance(found, str | list) else 0)
        return found

    called.__dict__.update(original.__dict__)  # how Jinja passes the context
    return called


def _check_size(size: int) -> None:
    if size > LONGEST:
        raise TemplateRuntimeError(f"it makes a text or a list of {size} entries")
