"""What the toolkit's simulator and the board's runtime of Rockchip's NPU have in common: their calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["checked", "runs"]


def checked(step: str, code: int) -> None:
    """Refuses what a step of ``code`` did not do."""
    if code != 0:
        raise ValueError(f"{step} failed with {code}")


def runs(runtime: Any, outputs: Sequence[Any]) -> Callable[[list[Any]], list[Any]]:
    """A call of ``runtime``, whose results get the shapes of the ports ``outputs``."""
    shapes = [port[2] for port in outputs]

    def run(arrays: list[Any]) -> list[Any]:
        values = runtime.inference(inputs=arrays, data_format=["nchw"] * len(arrays))
        if values is None:
            raise ValueError("inference failed")
        return [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]

    return run
