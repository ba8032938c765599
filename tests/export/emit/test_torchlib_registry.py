"""The exporter's table of translations, kept from engine to engine."""

from __future__ import annotations

import sys
from typing import Any

import onnx
import torch
from onnx_ir.schemas import OpSignature
from torch.onnx._internal.exporter._registration import ONNXRegistry

from twoheads.export.emit import torchlib_registry
from twoheads.export.emit.tokenwise_from_torch import OPSET
from twoheads.export.emit.torchlib_registry import _registry, kept_registry, kept_signatures


def _targets(registry: Any) -> dict[Any, int]:
    return {target: len(translations) for target, translations in registry.functions.items()}


def test_the_kept_table_is_the_exporters_own_and_what_is_added_to_a_copy_stays_there() -> None:
    own = _targets(ONNXRegistry.from_torchlib(opset_version=OPSET))
    with kept_registry(OPSET):
        first = ONNXRegistry().from_torchlib(opset_version=OPSET)
        first.register_op(torch.ops.aten.linear.default, lambda x: x)
        second = ONNXRegistry().from_torchlib(opset_version=OPSET)
    assert _targets(second) == own != _targets(first)
    assert second.opset_version == OPSET


def test_the_exporter_is_as_before_afterwards() -> None:
    before = vars(ONNXRegistry)["from_torchlib"]
    with kept_registry(OPSET):
        assert vars(ONNXRegistry)["from_torchlib"] is not before
    assert vars(ONNXRegistry)["from_torchlib"] is before


def test_where_torch_has_no_such_table_the_exporter_builds_its_own(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.onnx._internal.exporter._registration", None)
    assert _registry.__wrapped__(OPSET) is None
    monkeypatch.setattr(torchlib_registry, "_registry", lambda _opset: None)
    before = vars(ONNXRegistry)["from_torchlib"]
    with kept_registry(OPSET):
        assert vars(ONNXRegistry)["from_torchlib"] is before


def test_what_an_operator_takes_is_read_once_and_as_the_exporter_reads_it() -> None:
    old, new, other = (onnx.defs.get_schema(name, version) for name, version in (("Add", 7), ("Add", 14), ("Clip", 13)))
    own = [str(OpSignature.from_op_schema(schema)) for schema in (old, new, other)]
    before = vars(OpSignature)["from_op_schema"]
    with kept_signatures():
        found = [OpSignature.from_op_schema(schema) for schema in (old, new, other)]
        assert [str(signature) for signature in found] == own
        assert all(
            OpSignature.from_op_schema(schema) is signature
            for schema, signature in zip((old, new, other), found, strict=True)
        )
    assert vars(OpSignature)["from_op_schema"] is before
    assert own[0] != own[1]


def test_where_signatures_come_otherwise_nothing_is_kept(monkeypatch) -> None:
    monkeypatch.setattr(torchlib_registry, "OpSignature", object)
    with kept_signatures():
        pass
    assert "from_op_schema" not in vars(object)
