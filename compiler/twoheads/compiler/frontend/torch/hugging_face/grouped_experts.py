"""Which mixtures of experts of a transformers model are gathered by expert, and why others are not.

The library hands every mixture that can be computed by sorting to one function
(:class:`transformers.integrations.moe.ExpertsInterface`). What an expert does between its two products is a method of
the model, so it is found by experiment: its numbers are compared with every gate that engines have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.hugging_face.layers.expert_layers import EXPERT_LAYERS
from twoheads.compiler.frontend.torch.operators.experts_op import Gate
from twoheads.graphs.costs.expert_costs import dense_is_cheaper
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.engines.experts import GATES, ExpertsEngine

__all__ = ["DENSE", "ExpertsChoice", "find_gate", "grouped_gates"]

LIMITS = ("limit", "swiglu_limit")
ALPHAS = ("alpha", "swiglu_alpha")
"""How models call the numbers of their gates."""

TRIALS = 64
"""Rows of the experiment."""

FITS = 2e-6
"""Relative to the largest magnitude: two spellings of one gate differ by rounding."""


@dataclass(frozen=True, slots=True)
class ExpertsChoice:
    """How mixtures of experts are to be computed.

    Attributes:
        way: ``grouped`` by expert, ``dense`` (every expert on every token), or whichever
            costs less.
        block_size: Tokens of a block.
    """

    way: str = "dense"
    block_size: int = 256


DENSE = ExpertsChoice()
"""Every expert on every token."""


def grouped_gates(model: nn.Module, choice: ExpertsChoice) -> tuple[dict[int, Gate], dict[str, str]]:
    """The gates of the mixtures that are gathered by expert, and why the others are not.

    Returns:
        Gates by the identity of a module's dictionary, which stand-ins that a tracer makes of it share; and reasons by
        the path of a module.

    Raises:
        CompileError: ``grouped`` is asked for, and no mixture can be gathered.
    """
    gates: dict[int, Gate] = {}
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in EXPERT_LAYERS:
            reasons[path] = "computes its experts by code of its own"
        if not is_mixture(module):
            continue
        found = find_gate(module) if choice.way != "dense" else "--experts dense was asked for"
        if isinstance(found, Gate) and choice.way == "auto" and dense_is_cheaper(_sized(module, found, choice)):
            found = "all experts on all tokens of a block cost less than a call for each expert"
        if isinstance(found, Gate):
            gates[id(vars(module))] = found
        else:
            reasons[path] = found
    if choice.way == "grouped" and not gates:
        problem = next(iter(reasons.values()), "has no mixture of experts that the library hands over")
        raise CompileError("--experts grouped", f"{type(model).__name__} {problem}", "compile with --experts dense")
    return gates, reasons


def is_mixture(module: nn.Module) -> bool:
    """Whether it is one of the library's modules of experts that ask for an implementation by name."""
    return all(hasattr(module, name) for name in ("has_gate", "is_transposed", "num_experts", "down_proj"))


def find_gate(module: Any) -> Gate | str:
    """The gate whose numbers are those of the module's own, or what stands against one."""
    if module.has_post_expert_norm:
        return "norms what an expert gives, before it is weighted"
    up = module.gate_up_proj if module.has_gate else module.up_proj
    if up.ndim != 3 or module.down_proj.ndim != 3:
        return "has weights that are not one matrix an expert"
    width = int(up.shape[2 if module.is_transposed else 1])
    rows = torch.randn((TRIALS, width), generator=torch.Generator().manual_seed(0))
    rows[TRIALS // 2 :] *= 16  # beyond the limits that models have
    with torch.no_grad():
        want = module._apply_gate(rows) if module.has_gate else module.act_fn(rows)
        fits = next((gate for gate in _candidates(module) if _agrees(gate(rows), want)), None)
    return fits or "has a gate between its products that engines do not have"


def _candidates(module: Any) -> Iterator[Gate]:
    limits, alphas = [0.0, *_numbers(module, LIMITS)], _numbers(module, ALPHAS)
    plain = [name for name in GATES if name != "swiglu"]
    if not module.has_gate:
        yield from (Gate(name, "single") for name in plain)
        return
    for layout in ("halves", "pairs"):
        for limit in limits:
            yield from (Gate(name, layout, limit) for name in plain)
            yield from (Gate("swiglu", layout, limit, alpha) for alpha in alphas if alpha)


def _numbers(module: Any, names: Sequence[str]) -> list[float]:
    """What the module holds under these names, as far as it does."""
    found = (getattr(module, name, None) for name in names)
    return [float(number) for number in found if isinstance(number, int | float)]


def _agrees(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() <= FITS * want.abs().max())


def _sized(module: Any, gate: Gate, choice: ExpertsChoice) -> ExpertsEngine:
    """The engine that the module would have, but for what costs do not depend on."""
    experts, *sizes = module.down_proj.shape
    width, inner = reversed(sizes) if module.is_transposed else sizes
    config: Mapping[str, Any] = vars(module.config) if hasattr(module, "config") else {}
    chosen = next((config[name] for name in _CHOSEN if isinstance(config.get(name), int)), 1)
    return ExpertsEngine(
        "", experts, min(chosen, experts), width, inner, gate.gate, gate.layout, gate.limit, gate.alpha,
        int(module.is_transposed), int(module.has_bias), choice.block_size, "float32",
    )  # fmt: skip


_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "num_selected_experts", "top_k")
"""How configurations call the experts of a token."""
