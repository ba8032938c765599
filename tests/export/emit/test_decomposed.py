"""A region's program without the exporter's decomposition gives the file that the exporter gives by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from tests.compiler.small_models import EXAMPLES, OneLayer
from twoheads.compiler import compile_model
from twoheads.compiler.compiled_model import CompiledModel
from twoheads.compiler.frontend.torch.fx.fx_program import FxRegion
from twoheads.export.emit import tokenwise_from_torch, torchlib_registry
from twoheads.export.emit.decomposed import decomposed_program
from twoheads.export.emit.tokenwise_from_torch import OPSET, tokenwise_model
from twoheads.graphs.program.program import TokenwiseEngine
from twoheads.graphs.variants.stage_run import with_rows

Regions = list[tuple[FxRegion, TokenwiseEngine]]


def _regions(compiled: CompiledModel, rows: int) -> Regions:
    engines = with_rows(compiled.program, rows).tokenwise_engines
    found = [(compiled.regions[engine.name], engine) for engine in engines]
    return [(region, engine) for region, engine in found if isinstance(region, FxRegion)]


def _with_numbers_for_names(model: onnx.ModelProto) -> bytes:
    """The file with values, constants and nodes named by when they are first used; ports keep their names."""
    graph = model.graph
    names = {"": "", **{value.name: value.name for value in (*graph.input, *graph.output)}}
    for number, node in enumerate(graph.node):
        node.name = f"node_{number}"
        for values in (node.input, node.output):
            values[:] = [names.setdefault(name, f"value_{len(names)}") for name in values]
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    constants = list(graph.initializer)
    del graph.initializer[:]
    for tensor in constants:
        tensor.name = names[tensor.name]
    graph.initializer.extend(sorted(constants, key=lambda tensor: tensor.name))
    return model.SerializeToString(deterministic=True)


def _casts(x: Tensor) -> Tensor:
    wide = x.to(torch.float64).to(torch.float64)
    return (wide * 3).to(x.dtype).to(device="cpu").to(x.device, dtype=torch.float32) + (x > 0).to(x)


def _views(x: Tensor) -> Tensor:
    pairs = x.reshape(1, -1, 2, 4)
    turned = pairs.transpose(2, 3)
    copied = turned.contiguous().contiguous()
    return turned.reshape(1, -1, 8) + copied.view(1, -1, 8) + turned.mT.flatten(2) + copied.flatten(-2, -1)


def _pieces(x: Tensor) -> Tensor:
    first, second, third = x.chunk(3, dim=-1)  # of widths 3, 3 and 2
    fourth, fifth = x.split(5, dim=-1)
    return torch.cat([second, first, third], -1) + torch.cat([fifth, fourth], -1)


def _nothing(x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x.detach(), 0.5, training=False) + torch.softmax(x, -1)


def _norms(x: Tensor) -> Tensor:
    rms = torch.nn.functional.rms_norm
    halves = x.reshape(1, -1, 2, 4)
    spread = x.var(-1, keepdim=True) + (1.0 - x).var([-1], unbiased=False, keepdim=True)
    normed = rms(x, [8], eps=1e-6) + rms(x, [8], WEIGHT) + rms(halves, [2, 4]).flatten(2)
    return normed / (1 + spread) + torch.square(x) + halves.var([-1, 2], keepdim=True)[..., 0]


WEIGHT = torch.linspace(0.5, 2, 8)


@cache
def _all_of_them() -> CompiledModel:
    module = OneLayer(after=lambda x: _casts(x) + _views(x) + _pieces(x) + _nothing(x) + _norms(x))
    return compile_model(module, example_inputs=EXAMPLES, block_size=16)


@pytest.mark.parametrize("rows", [1, 16])
def test_the_file_is_the_exporters(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = _regions(_all_of_them(), rows)
    assert all(decomposed_program(*region, OPSET) is not None for region in regions)
    quick = [_with_numbers_for_names(tokenwise_model(*region)) for region in regions]
    monkeypatch.setattr(tokenwise_from_torch, "decomposed_program", lambda *_: None)
    assert quick == [_with_numbers_for_names(tokenwise_model(*region)) for region in regions]


def _is_made(after: Callable[[Tensor], Tensor]) -> bool:
    """Whether the exporter's own way is taken for a region, and makes it."""
    compiled = compile_model(OneLayer(after=after), example_inputs=EXAMPLES, block_size=16)
    own = [region for region in _regions(compiled, 16) if decomposed_program(*region, OPSET) is None]
    for region in own:
        onnx.checker.check_model(tokenwise_model(*region))
    return bool(own)


def test_what_has_no_translation_of_its_own_is_left_to_the_exporter() -> None:
    assert _is_made(lambda x: torch.std(x, -1, keepdim=True) * x)


def test_so_is_everything_where_torch_does_not_say_what_it_translates(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_opset: int) -> Any:
        return None

    monkeypatch.setattr(torchlib_registry, "_registry", nothing)
    torchlib_registry.translated.cache_clear()
    try:
        assert _is_made(torch.tanh)
    finally:
        torchlib_registry.translated.cache_clear()


def test_the_exporter_decomposes_as_before_afterwards() -> None:
    from torch.onnx._internal.exporter import _fx_passes

    before = _fx_passes.decompose_with_registry
    tokenwise_model(*_regions(_all_of_them(), 16)[0])
    assert _fx_passes.decompose_with_registry is before


def test_nobody_is_told_which_packages_the_exporter_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    """Its table of translations, made for the first engine, has operators of packages that are not installed."""
    torchlib_registry._registry.cache_clear()
    torchlib_registry.translated.cache_clear()
    tokenwise_model(*_regions(_all_of_them(), 16)[0])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
