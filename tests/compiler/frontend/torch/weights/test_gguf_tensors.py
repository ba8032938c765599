"""Tensors of a GGUF file, expanded some rows at a time, are what the library makes of them at once."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from twoheads.compiler.frontend.torch.weights import gguf_tensors
from twoheads.compiler.frontend.torch.weights.gguf_tensors import expanded

KINDS = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0, KINDS.Q4_1, KINDS.Q5_1])
@pytest.mark.parametrize("shape", [(7, 256), (3, 5, 64), (96,)])
def test_parts_are_the_whole(kind: KINDS, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    data = gguf.quantize(np.random.default_rng(0).standard_normal(shape).astype(np.float32), kind)
    expected = gguf.dequantize(data, kind)
    for numbers in (1, 3 * shape[-1], 1 << 20):
        monkeypatch.setattr(gguf_tensors, "PART", numbers)
        found = expanded(data, kind)
        assert found.dtype == np.float32
        assert found.flags.writeable
        np.testing.assert_array_equal(found, expected, strict=True)
