"""Tests share the files of equal engines, and nothing but these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from tests.compiler.small_models import EXAMPLES, OneLayer
from tests.export.emit.test_decomposed import Regions, _regions
from tests.exported_once import _kept
from twoheads.compiler import compile_model
from twoheads.export.emit.tokenwise_from_torch import tokenwise_model


def _of(factor: float) -> Regions:
    def after(x: Tensor) -> Tensor:
        return torch.tanh(x) * factor

    return _regions(compile_model(OneLayer(after=after), example_inputs=EXAMPLES, block_size=16), 16)


def test_a_file_is_made_once_and_is_the_exporters(tmp_path: Path) -> None:
    made: list[Any] = []

    def told(region: Any, engine: Any) -> onnx.ModelProto:
        made.append(engine)
        return tokenwise_model(region, engine)

    shared = _kept(told, tmp_path)
    first, again = _of(2.0), _of(2.0)
    before = [shared(*region) for region in first]
    assert len(made) == len(first)
    before[0].graph.name = "changed by who got it"
    after = [shared(*region) for region in again]
    assert len(made) == len(first), "an equal engine of another model was made again"
    assert after == [tokenwise_model(*region) for region in again]
    other = [shared(*region) for region in _of(3.0)]
    assert other != after, "another number in the region's code is another file"
    number = len(made)
    assert [_kept(told, tmp_path)(*region) for region in again] == after
    assert len(made) == number, "another process, which has the folder, made it again"
    region, engine = first[0]
    renamed = shared(region, replace(engine, name="another"))
    assert renamed.graph.name == "another"
