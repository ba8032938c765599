"""Shows what every layer of a model gives, and lets the next one read other numbers in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Exchange", "feeding_layers", "repeated_layers"]

Exchange = Callable[[str, Tensor], Tensor | None]
"""Given a layer's name and its result ``[n, width]`` in float32; what the next layer reads instead, or ``None``."""


def repeated_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of ``module`` by path: what stands in its lists of modules, but not what stands in lists of those."""
    for name, child in module.named_children():
        found = child.named_children() if isinstance(child, nn.ModuleList) else repeated_layers(child)
        yield from ((f"{name}.{path}", layer) for path, layer in found)


@contextmanager
def feeding_layers(module: nn.Module, exchange: Exchange) -> Generator[None]:
    """Within it, ``exchange`` sees the result of every layer of ``module`` that is rows of tokens.

    A layer that runs a second time, as shared ones do, is called ``PATH (2)`` then.
    """
    calls = Counter[str]()

    def hook(path: str) -> Callable[[nn.Module, Any, Any], Any]:
        def seen(_module: nn.Module, _given: Any, result: Any) -> Any:
            first: Any = result[0] if isinstance(result, tuple) and result else result
            if not isinstance(first, Tensor) or first.ndim != 3 or not first.is_floating_point():
                return None
            calls[path] += 1
            name = path if calls[path] == 1 else f"{path} ({calls[path]})"
            # A short input runs as a batch of copies of itself.
            other = exchange(name, first[0].detach().to(torch.float32))
            if other is None:
                return None
            fed = other.to(first.dtype).expand_as(first)
            return (fed, *_rest(result)) if isinstance(result, tuple) else fed

        return seen

    hooks = [layer.register_forward_hook(hook(path)) for path, layer in repeated_layers(module)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _rest(result: Any) -> Any:
    return result[1:]
