"""One thread's arrays that go into a stock engine's calls, with their synthetic key in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from twoheads.graphs.program.engines.stock_attention import StockEngine

__all__ = ["StockKeys", "StockQueries"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(slots=True)
class StockKeys:
    """The key side of one variant's calls: ``k [groups, keys, query_dim]``, ``v [groups, keys, v_head_dim + 2]``."""

    k: Array
    v: Array
    tensors: tuple[Any, Any]

    @classmethod
    def of(cls, engine: StockEngine, variant: str, wrap: Callable[[Array], Any]) -> StockKeys:
        ports, _ = engine.ports(variant)
        k, v = np.zeros(ports[1].shape, ports[1].dtype), np.zeros(ports[2].shape, ports[2].dtype)
        k[:, :, 0, engine.head_dim] = 1
        v[:, :, 0, -1] = 1
        return cls(k[0], v[0], (wrap(k), wrap(v)))


@dataclass(slots=True)
class StockQueries:
    """The query side: ``q [heads, block, query_dim]`` and where its call's result comes."""

    q: Array
    tensor: Any

    @classmethod
    def of(cls, engine: StockEngine, wrap: Callable[[Array], Any]) -> StockQueries:
        port = engine.ports("full")[0][0]
        q = np.zeros(port.shape, port.dtype)
        return cls(q[0], wrap(q))
