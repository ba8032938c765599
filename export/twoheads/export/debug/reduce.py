"""A failing model reduced to as few nodes as still fail in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from twoheads.export.debug.evaluators import Arrays, Evaluator
from twoheads.export.debug.graph_cuts import cut_nodes, graph_ports, mark_all, value_types
from twoheads.export.debug.oracles import Failure, Oracle
from twoheads.export.progress import Progress, silent

__all__ = ["Reduction", "reduce_model"]


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is left of a model.

    Attributes:
        model: The nodes that are left; values that others computed are its inputs.
        inputs, expected: Of it, by the yardstick.
        whole: How all of the model fails.
        failure: How what is left does.
        checks: How many models were tried.
    """

    model: onnx.ModelProto
    inputs: Arrays
    expected: Arrays
    whole: Failure
    failure: Failure
    checks: int


def reduce_model(
    model: onnx.ModelProto,
    inputs: Arrays,
    yardstick: Evaluator,
    oracle: Oracle,
    *,
    message: str = "",
    progress: Progress | None = None,
) -> Reduction | None:
    """Finds nodes of ``model`` that fail, none of which can be left out; ``None`` if the model does not fail.

    The first node with which the nodes up to it fail is found by halving, then the last one from which on they still
    do, then single nodes are left out. What is left out is replaced by the values that ``yardstick`` computes. Where a
    failure comes and goes with more nodes, what is found fails, but need not be the smallest or the first that does.

    Args:
        model: Of fixed shapes.
        inputs: Of the whole model.
        yardstick: Computes all values.
        oracle: Says whether a model fails.
        message: A regular expression; a failure counts only if its message has it.
        progress: Called as ``progress(phase, checks so far, 0)``.
    """
    search = _Search(model, inputs, yardstick, oracle, message, progress or silent)
    nodes = list(range(len(model.graph.node)))
    whole = search.failure(nodes)
    if whole is None:
        return None
    search.kind = whole.kind
    kept = nodes[: _smallest(1, len(nodes), lambda count: search.fails(nodes[:count]))]
    needed = search.upstream(kept[-1])
    if len(needed) < len(kept) and search.fails(needed):
        kept = needed
    kept = kept[len(kept) - _smallest(1, len(kept), lambda count: search.fails(kept[-count:])) :]
    kept = _leave_out(kept, search)
    failure = search.failure(kept) or whole
    part, given, expected = search.part(kept)
    return Reduction(part, given, expected, whole, failure, search.checks)


class _Search:
    """The model with all its values, and what was asked of the oracle."""

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Arrays,
        yardstick: Evaluator,
        oracle: Oracle,
        message: str,
        progress: Progress,
    ) -> None:
        self.kind: str | None = None
        self.checks = 0
        self._model = model
        self._types = value_types(model)
        self._values = {**inputs, **yardstick(mark_all(model), inputs)}
        self._oracle = oracle
        self._message = re.compile(message)
        self._progress = progress
        self._known: dict[tuple[int, ...], Failure | None] = {}

    def fails(self, kept: Sequence[int]) -> bool:
        return self.failure(kept) is not None

    def failure(self, kept: Sequence[int]) -> Failure | None:
        """How the model of these nodes fails, if in the way that is looked for; each is tried once."""
        key = tuple(kept)
        if key not in self._known:
            self._progress("reduce", self.checks)
            self.checks += 1
            self._known[key] = self._oracle(*self.part(kept))
        found = self._known[key]
        wanted = found is not None and self.kind in (None, found.kind) and self._message.search(found.message)
        return found if wanted else None

    def part(self, kept: Sequence[int]) -> tuple[onnx.ModelProto, Arrays, Arrays]:
        """The model of these nodes, its inputs and its expected outputs."""
        part = cut_nodes(self._model, kept, self._types)
        given, made = graph_ports(part)
        values = self._values
        return part, {port.name: values[port.name] for port in given}, {port.name: values[port.name] for port in made}

    def upstream(self, node: int) -> list[int]:
        """The node and all that it depends on, ascending."""
        nodes = self._model.graph.node
        needed: set[str] = set(nodes[node].input)
        kept = [node]
        for index in range(node - 1, -1, -1):
            if needed.intersection(nodes[index].output):
                kept.append(index)
                needed.update(nodes[index].input)
        return kept[::-1]


def _smallest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from ``low`` on for which ``holds``; it does for ``high``."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _leave_out(kept: list[int], search: _Search) -> list[int]:
    """Leaves out one node after the other until none can be."""
    at = 0
    while at < len(kept) and len(kept) > 1:
        fewer = kept[:at] + kept[at + 1 :]
        if search.fails(fewer):
            kept, at = fewer, 0
        else:
            at += 1
    return kept
