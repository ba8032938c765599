"""A mixture of experts as one operator in a captured graph: tokens meet the experts that they chose and no others.

Run eagerly it computes what it says, one expert after the other. What the library computes, by loops or by sorting, has
no code in common with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twoheads.compiler.frontend.torch.weights.stored_tensor import read_by_parts

__all__ = ["EXPERTS", "Gate", "experts_op"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What an expert does between its two products; see :class:`twoheads.graphs.program.engines.experts.ExpertsEngine`.

    Attributes:
        gate, layout, limit, alpha: As there.
    """

    gate: str
    layout: str
    limit: float = 0.0
    alpha: float = 0.0

    def __call__(self, made: Tensor) -> Tensor:
        """``[rows, inner]`` of what the first product gave."""
        if self.layout == "single":
            return _ACTIVATIONS[self.gate](made)
        gate, up = (made[..., ::2], made[..., 1::2]) if self.layout == "pairs" else made.chunk(2, -1)
        if self.limit:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        if self.gate == "swiglu":
            return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
        return _ACTIVATIONS[self.gate](gate) * up


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square(),
    "silu": functional.silu,
}


def _gathered(
    hidden: Tensor,
    index: Tensor,
    share: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    gate: str,
    layout: str,
    limit: float,
    alpha: float,
    transposed: bool,
) -> Tensor:
    """The sum over each token's experts of what they make of it, weighted.

    Args:
        hidden: ``[n, width]``.
        index: The experts that each token chose, ``[n, chosen]``; numbers that name none count nothing.
        share: Their weights, ``[n, chosen]``.
        up: Weights of the first products, ``[experts, made, width]``; ``[experts, width, made]`` if ``transposed``.
        up_bias: ``[experts, made]``.
        down: Of the second, ``[experts, width, inner]`` or ``[experts, inner, width]``.
        down_bias: ``[experts, width]``.
        gate: As of :class:`Gate`.
        layout: Likewise.
        limit: Likewise.
        alpha: Likewise.
        transposed: How weights lie.

    Returns:
        ``[n, width]``.
    """
    act = Gate(gate, layout, limit, alpha)
    total = torch.zeros_like(hidden)
    for expert in torch.unique(index).tolist():
        if not 0 <= expert < len(up):
            continue
        rows, slots = torch.where(index == expert)
        # Stored weights are read here, one expert's at a time.
        first, last = (part[expert].mT if transposed else part[expert] for part in (up, down))
        made = functional.linear(hidden[rows], first, None if up_bias is None else up_bias[expert])
        made = functional.linear(act(made), last, None if down_bias is None else down_bias[expert])
        total.index_add_(0, rows, made * share[rows, slots, None])
    return total


experts_op = torch.library.custom_op("twoheads::experts", _gathered, mutates_args=())
read_by_parts(torch.ops.twoheads.experts.default, _gathered)


@experts_op.register_fake
def _(hidden: Tensor, *_others: object, **_named: object) -> Tensor:
    return torch.empty_like(hidden)


EXPERTS = "twoheads.experts.default"
"""What graphs call :func:`experts_op`."""
