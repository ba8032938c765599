"""Keeps what the ONNX exporter reads of translations and of operators from engine to engine."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
from onnx_ir.schemas import OpSignature
from torch._ops import OpOverload

__all__ = ["kept_registry", "kept_signatures", "translated"]


@contextmanager
def kept_registry(opset: int) -> Generator[None]:
    """Within it, every ``torch.onnx.export`` for ``opset`` begins with a copy of one table of translations.

    The exporter parses the sources of all of torchlib's functions anew for every model, which takes longer than to
    export one of our engines. What keeps them is not public: a release that does it otherwise does it at its own pace.
    """
    kept = _registry(opset)
    if kept is None:
        yield
        return
    owner = type(kept)
    original = vars(owner)["from_torchlib"]

    def from_torchlib(opset_version: int) -> Any:
        if opset_version != opset:
            return original.__get__(None, owner)(opset_version)
        registry = copy.copy(kept)
        registry.functions = {target: [*translations] for target, translations in kept.functions.items()}
        return registry

    owner.from_torchlib = staticmethod(from_torchlib)
    try:
        yield
    finally:
        owner.from_torchlib = original


@contextmanager
def kept_signatures() -> Generator[None]:
    """Within it, what an ONNX operator takes is read from its schema once, not for each node that has it.

    Schemas are of this process and never change. A release that reads them otherwise does it at its own pace.
    """
    owner: Any = OpSignature
    original = vars(owner).get("from_op_schema")
    if not isinstance(original, classmethod):
        yield
        return

    def from_op_schema(_: Any, schema: Any) -> Any:
        key = schema.domain, schema.name, schema.since_version
        if key not in _SIGNATURES:
            _SIGNATURES[key] = original.__get__(None, owner)(schema)
        return _SIGNATURES[key]

    owner.from_op_schema = classmethod(from_op_schema)
    try:
        yield
    finally:
        owner.from_op_schema = original


_SIGNATURES: dict[tuple[str, str, int], Any] = {}
"""By an operator's domain, name and set."""


@lru_cache
def _registry(opset: int) -> Any:
    """The table for ``opset``; ``None`` where this release of torch has none of this shape."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registry: Any = ONNXRegistry.from_torchlib(opset_version=opset)
    except (ImportError, AttributeError, TypeError):
        return None
    return registry if isinstance(vars(registry).get("functions"), dict) else None


@lru_cache
def translated(opset: int) -> frozenset[Any]:
    """The operators that are translated as they are: no trace takes them apart, and none changes an argument.

    Empty where this release of torch does not say so.
    """
    registry = _registry(opset)
    if registry is None:
        return frozenset()
    try:
        from torch._export import utils
        from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads
        from torch.onnx._internal.exporter._fx_passes import decompose_with_registry

        private: Any = torch
        has_kernel, keys = private._C._dispatch_has_kernel, private._C.DispatchKey
        is_preserved = cast("Any", utils)._is_preservable_cia_op
        assert callable(decompose_with_registry)
    except (ImportError, AttributeError):
        return frozenset()
    composed, known = keys.CompositeImplicitAutograd, set[Any]()
    for target in get_onnx_implemented_overloads(registry):
        operator: Any = target
        if not isinstance(target, OpOverload) or not has_kernel(operator.name()):
            continue
        kept = is_preserved(operator) or not operator.has_kernel_for_dispatch_key(composed)
        if kept and not operator._schema.is_mutable:
            known.add(operator)
    return frozenset(known)
