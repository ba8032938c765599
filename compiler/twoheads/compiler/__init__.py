"""Capture a model and lower it to a block program with fixed-shape engines."""

from twoheads.compiler.attention_op import attention
from twoheads.compiler.compile_model import compile_model, plan_model
from twoheads.compiler.compiled_model import CompiledModel

__all__ = ["CompiledModel", "attention", "compile_model", "plan_model"]
