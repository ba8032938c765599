"""Capture a model and lower it to a block program with fixed-shape engines."""

from typing import TYPE_CHECKING, Any

from twoheads.compiler.compile_model import compile_model, plan_model
from twoheads.compiler.compiled_model import CompiledModel

if TYPE_CHECKING:
    from twoheads.compiler.frontend.torch.operators.attention_op import attention

__all__ = ["CompiledModel", "attention", "compile_model", "plan_model"]


def __getattr__(name: str) -> Any:
    """``attention`` is an operator of torch, which an ONNX file needs not: loaded when it is asked for."""
    if name != "attention":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from twoheads.compiler.frontend.torch.operators.attention_op import attention

    return attention
