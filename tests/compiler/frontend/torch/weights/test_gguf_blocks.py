"""Which numbers of a GGUF file a bundle's weights of few bits keep: what is told of a type is true of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from twoheads.compiler.frontend.torch.weights.gguf_blocks import EIGHT_BITS, FOUR_BITS, file_blocks
from twoheads.export.precision.quantised_arrays import dequantise, quantise, quantise_exactly

ROWS, WIDTH = 16, 512
RANDOM = np.random.default_rng(0)
KINDS = [GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0")]


def stored(kind: Any) -> Any:
    """The bytes of a matrix; those of blocks of 256, which the package only reads, are any bytes with finite scales."""
    try:
        return quantize(RANDOM.standard_normal((ROWS, WIDTH)).astype(np.float32), kind)
    except NotImplementedError:
        numbers, size = GGML_QUANT_SIZES[kind]
        raw = RANDOM.integers(0, 256, (ROWS, WIDTH // numbers, size), np.uint8)
        scales = RANDOM.uniform(1e-4, 1e-3, (ROWS, WIDTH // numbers, 2)).astype(np.float16).view(np.uint8)
        if kind == GGMLQuantizationType.Q6_K:
            raw[..., -2:] = scales[..., :2]
        else:
            raw[..., :4] = scales
        return raw.reshape(ROWS, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_is_said_to_be_kept_exactly_where_its_blocks_are(kind: Any) -> None:
    weight = np.asarray(dequantize(stored(kind), kind), np.float32)
    for bits, kept in ((4, FOUR_BITS), (8, EIGHT_BITS)):
        values, scales, *offsets = quantise(weight, bits)
        apart = np.abs(dequantise(values, scales, offsets[0] if offsets else None) - weight).max()
        assert (apart < 1e-6 * np.abs(weight).max()) == (kind.name in kept)
    assert (quantise_exactly(weight) is not None) == (kind.name in FOUR_BITS)


def test_matrices_are_counted_by_what_becomes_of_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer: Any = gguf.GGUFWriter(path, "llama")
    tensors = {"token_embd.weight": "Q8_0", "a.weight": "Q4_K", "b.weight": "Q4_K", "c.weight": "Q6_K"}
    for name, kind in tensors.items():
        writer.add_tensor(name, stored(GGMLQuantizationType[kind]), raw_dtype=GGMLQuantizationType[kind])
    writer.add_tensor("d.weight", np.zeros((4, 32), np.float32))
    writer.add_tensor("norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    four = file_blocks(path, "int4", "float32")
    assert (four.kept, four.rounded) == ({"Q8_0": 1, "Q4_K": 2}, {"Q6_K": 1, "F32": 1})
    lossless = file_blocks(path, "lossless", "float32")
    assert (lossless.kept, lossless.rounded) == ({"Q4_K": 2}, {})
    assert lossless.expanded == {"Q8_0": 1, "Q6_K": 1, "F32": 1}
    eight = file_blocks(path, "int8", "float32")
    assert (eight.kept, eight.rounded) == ({"Q8_0": 1}, {"Q4_K": 2, "Q6_K": 1, "F32": 1})
