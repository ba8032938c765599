"""Runs a captured graph against the model it was captured from: its own eager code, without any of our hooks.

What a hook drops (a mask, a bias, a factor), and what a rewriting of the graph spoils, shows here, before any engine is
made. Only windows and chunks longer than the trial are beyond it; ``verify`` runs whole inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.ir.source_graph import SequenceNode
from twoheads.compiler.ir.source_program import Captured, example_inputs, trial_lengths
from twoheads.compiler.original.torch_original import TorchOriginal
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.sequence_operators import sought_tokens

__all__ = ["prove_capture"]

LENGTHS = (45, 16)
"""Tokens of the trial; the second where a model's tables of positions end before the first."""

STEP = 3
"""A second input, of another length, is longer by that."""

SEEDS = (5, 6, 7)
"""Of the inputs. One of them must agree: where a token hardly prefers one expert to another, rounding decides."""

TOLERANCE = 1e-4
"""Relative to the largest magnitude."""

Array = npt.NDArray[Any]


def prove_capture(source: LoadedSource, captured: Captured) -> None:
    """Compares last hidden states and logits of random tokens.

    Raises:
        CompileError: They differ by more than rounding.
    """
    worst: tuple[float, str, int] | None = None
    for seed in SEEDS:
        difference, name, length = _difference(source, captured, seed)
        if difference <= TOLERANCE:
            return
        worst = max(worst or (0.0, name, length), (difference, name, length))
    if worst is not None:
        raise CompileError(
            source.identity.name,
            f"computes something else than its captured graph: with {worst[2]} tokens the {worst[1]} differ by "
            f"{worst[0]:.1e} of the largest magnitude from those of its own eager code",
            f"{source.identity.architecture} does something that a capture does not see; use another model",
        )


def _difference(source: LoadedSource, captured: Captured, seed: int) -> tuple[float, str, int]:
    """The larger relative difference, of which result, and the number of tokens."""
    length, given, hidden, logits = _own_results(source, captured, seed)
    names = {"hidden states": captured.graph.hidden}
    if captured.graph.logits is not None:
        names["logits"] = captured.graph.logits
    values = captured.program.evaluate(names.values(), given)
    found: list[tuple[float, str]] = []
    for (title, name), own in zip(names.items(), (hidden, logits), strict=False):
        found.append((_relative(values[name], own), title))
    return (*max(found), length)


def _own_results(
    source: LoadedSource, captured: Captured, seed: int
) -> tuple[int, Mapping[str, Array], Array, Array | None]:
    """Tokens, all inputs of the graph, and what the model itself makes of its own."""
    inputs = captured.program.inputs
    sought = sought_tokens(node for node in captured.graph.nodes if isinstance(node, SequenceNode))
    longest = min((limit.length for limit in captured.graph.limits), default=LENGTHS[0] + STEP)
    for length in (min(tokens, max(1, longest - STEP)) for tokens in LENGTHS):
        given = example_inputs(inputs, trial_lengths(captured.graph, length, step=STEP), seed)
        for name, token in sought.items():
            if name in source.inputs:
                given[name][..., -1] = token
        own = {name: torch.from_numpy(given[name]) for name in source.inputs if name in given}
        try:
            hidden, logits = TorchOriginal(source).hidden_and_logits(own, None, "plain")
        except (IndexError, RuntimeError):
            if length <= LENGTHS[-1]:
                raise
            continue
        return length, given, hidden.numpy(), None if logits is None else logits.numpy()
    raise AssertionError("one of the lengths returned")


def _relative(found: Array, own: Array | None) -> float:
    """The largest distance where the model's own numbers are finite, relative to the largest of these."""
    if own is None or found.reshape(-1).shape != own.reshape(-1).shape:
        return float("inf")
    # Weights that are no numbers are refused, or asked for, elsewhere: what they spoil can't be compared.
    finite = np.isfinite(own.reshape(-1))
    mine, theirs = found.reshape(-1).astype(np.float64)[finite], own.reshape(-1)[finite]
    largest = float(np.abs(mine - theirs).max(initial=0.0)) / max(float(np.abs(theirs).max(initial=0.0)), 1e-30)
    return largest if np.isfinite(largest) else float("inf")
