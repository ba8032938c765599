"""TensorRT: engines for the GPU of this machine, which builds and runs them."""

from __future__ import annotations

import ctypes
from typing import Any

import tensorrt
from trt_engine import build_engine

DRIVER = "libcuda.so.1"


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "tensorrt", "version": tensorrt.__version__}


def missing(_device: str) -> str:
    """TensorRT builds by timing kernels, so it needs the GPU's driver."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"TensorRT builds on the GPU that it builds for, and there is no driver of one here ({DRIVER})"
    return ""


def build(request: dict[str, Any]) -> None:
    """Builds for this machine's GPU, and runs there if asked."""
    build_engine(request, lambda _config: None)


def off_accelerator(_log: str) -> list[str]:
    """Nothing: there is no host to fall back to, an engine is whole or refused."""
    return []
