"""What is done on the GPU, in order: the name of each step, its part of the module that does it, and its limit."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STEPS", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        module: Of ``tools.gpu``; it has a function of the step's name with ``_`` for spaces.
        title: What the page calls it.
        seconds: The most that it may take.
    """

    module: str
    title: str
    seconds: float


STEPS: dict[str, Step] = {
    "driver": Step("checks", "the driver's calls: the card, its memory, a copy there and back", 30),
    "merge kernel": Step("checks", "the merge kernel's PTX beside the host's merge", 30),
    "device executor": Step("checks", "whole runs on CUDA beside the processor's, at many lengths", 90),
    "graphs": Step("checks", "the third run of a length replays a graph: the same numbers", 60),
    "half precision": Step("checks", "a bundle of float16 on CUDA beside float32", 60),
    "tensorrt provider": Step("checks", "whole runs by ONNX Runtime's TensorRT provider", 90),
    "tensorrt build": Step("checks", "`build --target tensorrt`, and its engines by `tensorrt-engine`", 90),
    "attention": Step("bench", "attention alone beside torch's scaled_dot_product_attention", 60),
    "whole models": Step("bench", "a decoder beside torch, and beside TensorRT at the whole length", 150),
}
