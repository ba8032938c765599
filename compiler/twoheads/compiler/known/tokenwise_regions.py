"""The token-wise stages of a program that is written down: an engine for each role of a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypeAlias

from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine
from twoheads.graphs.program.program import TOKENS
from twoheads.graphs.program.stages import Stage, TokenwiseStage, Value

__all__ = ["Body", "Regions", "Weights"]

Weights: TypeAlias = Sequence[Port]

MATRIX = 2
"""Dimensions of a weight that rows are multiplied with; more where there are several of them."""


@dataclass(frozen=True, slots=True)
class Regions:
    """Token-wise stages and their engines, one for each role that a region has.

    Attributes:
        block: Tokens of a block.
        engines: By role.
    """

    block: int
    engines: dict[str, TokenwiseEngine] = field(default_factory=dict[str, TokenwiseEngine])

    def add(
        self,
        role: str,
        stage: str,
        reads: Sequence[Value],
        gives: Sequence[Value],
        weights: Weights,
        looked_up: int = 0,
    ) -> TokenwiseStage:
        """A stage; its engine is added where it is the first of its role. Of weights the first are ``looked_up``."""
        if role not in self.engines:
            name = role if role == "head" else f"tokenwise_{len(self.engines)}"
            products = (port for port in weights[looked_up:] if len(port.shape) >= MATRIX)
            flops = 2 * self.block * sum(prod(port.shape) for port in products)
            ports = tuple(replace(port, name=_without_layer(port.name)) for port in weights)
            self.engines[role] = TokenwiseEngine(
                name, self._ports("input", reads), self._ports("output", gives), ports, flops
            )
        named = tuple(value.name for value in reads), tuple(gives), tuple(port.name for port in weights)
        return TokenwiseStage(stage, self.engines[role].name, *named)

    def _ports(self, name: str, values: Sequence[Value]) -> tuple[Port, ...]:
        shapes = [tuple(self.block if dim == TOKENS else int(dim) for dim in value.shape) for value in values]
        dtypes = [value.dtype for value in values]
        return tuple(Port(f"{name}_{at}", *found) for at, found in enumerate(zip(dtypes, shapes, strict=True)))


@dataclass(frozen=True, slots=True)
class Body:
    """The stages of a body so far.

    Attributes:
        regions: The token-wise ones of them, and their engines.
        stages: All, in order.
    """

    regions: Regions
    stages: list[Stage] = field(default_factory=list[Stage])

    @property
    def next(self) -> str:
        """The name of the next region."""
        return f"region_{sum(isinstance(stage, TokenwiseStage) for stage in self.stages)}"

    def region(
        self, role: str, reads: Sequence[Value], gives: Sequence[Value], weights: Weights, *, looked_up: int = 0
    ) -> None:
        """Adds a region; see :meth:`Regions.add`."""
        self.stages.append(self.regions.add(role, self.next, reads, gives, weights, looked_up))


def _without_layer(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())
