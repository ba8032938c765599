"""What ONNX Runtime's providers for NVIDIA are asked for: they run nowhere here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twoheads.runtime.backends import onnxruntime_cuda as module


@pytest.mark.parametrize(("precision", "half"), [("f16", "1"), ("f32", "0")])
def test_norms_stay_float32_where_tensorrt_multiplies_in_half(
    precision: str, half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "engine.onnx").write_bytes(b"x")
    backend: Any = object.__new__(module.CudaBackend)  # which wants a device to be made
    backend.name, backend._precision = "tensorrt", precision
    (_, options), (_, cuda) = backend._providers(tmp_path / "engine.onnx", {}, 7)
    assert (options["trt_fp16_enable"], options["trt_layer_norm_fp32_fallback"]) == (half, half)
    assert (cuda["use_tf32"], cuda["user_compute_stream"]) == ("0", "7")
