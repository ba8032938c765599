"""Engines that TensorRT for RTX built. Polygraphy imports it in TensorRT's place, if told before it is imported."""

from __future__ import annotations

import os

os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"

from run_tensorrt import open_artifact

__all__ = ["open_artifact"]
