"""Times on the GPU: attention alone, and whole decoders, beside torch and beside TensorRT at the whole length.

Each figure is the best of three after a first run. What a contender can't do (no memory, no kernel, no package) is a
cell of the table, and the others go on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - as everyone calls it

from tools.gpu.model import LARGE, Decoder, Size, example
from tools.gpu.one_step import Found

__all__ = ["attention", "whole_models"]

LENGTHS = (1024, 4096, 16384, 65536)
WHOLE = (1024, 4096)
"""Lengths for which TensorRT builds the whole model: each takes it most of a minute."""
TURNS = 3
BLOCK, TILE = 512, 2048


def attention(device: str = "cuda", lengths: tuple[int, ...] = LENGTHS) -> Found:
    """One causal attention of 12 heads: torch's flash kernel in float16, and its plain one in float32."""
    _need(device)
    found = Found(rows=[("attention alone, tokens", "flash, float16, ms", "efficient, float32, ms")])
    for length in lengths:
        times = [partial(_attention, device, length, dtype) for dtype in (torch.float16, torch.float32)]
        found.rows.append((f"{length:,}", *map(_cell, times)))
    return found


def whole_models(
    device: str = "cuda",
    backends: tuple[str, ...] = ("cuda", "tensorrt"),
    lengths: tuple[int, ...] = LENGTHS,
    whole: tuple[int, ...] = WHOLE,
    size: Size = LARGE,
) -> Found:
    """The decoder by our backends in float32 and float16, by torch in both, and by TensorRT at the whole length."""
    _need(device)
    model = Decoder(size)
    contenders: dict[str, Callable[[int], float]] = {}
    with _bundles(model) as bundles:
        for backend in backends:
            for name, bundle in bundles.items():
                contenders[f"ours, {backend}, {name}"] = _ours(bundle, backend, size)
        contenders["torch, float32"] = lambda n: _torch(model, device, n, torch.float32)
        contenders["torch, float16"] = lambda n: _torch(model, device, n, torch.float16)
        contenders["TensorRT, whole length"] = lambda n: _whole(model, n, whole)
        found = Found(rows=[("whole decoder, tokens", *(f"{name}, ms" for name in contenders))])
        for length in lengths:
            found.rows.append((f"{length:,}", *(_cell(partial(run, length)) for run in contenders.values())))
    found.facts["decoder"] = f"{size.layers} layers, {size.heads} heads of {size.head_dim}, blocks of {BLOCK}"
    return found


def _need(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this torch finds no CUDA device")


def _cell(measure: Callable[[], float]) -> str:
    """Milliseconds, or why there are none."""
    try:
        return f"{1e3 * measure():.1f}"
    except Exception as error:  # noqa: BLE001 - whatever a contender raises is its cell
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:90]


def _best(run: Callable[[], object], wait: Callable[[], object]) -> float:
    """Seconds of the fastest of three runs after a first."""
    times: list[float] = []
    for _ in range(TURNS + 1):
        wait()
        began = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _waiter(device: str) -> Callable[[], object]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


@torch.no_grad()
def _attention(device: str, length: int, dtype: torch.dtype) -> float:
    query, key, value = torch.randn(3, 1, 12, length, 64, device=device, dtype=dtype)
    return _best(lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True), _waiter(device))


@torch.no_grad()
def _torch(model: Decoder, device: str, length: int, dtype: torch.dtype) -> float:
    there = Decoder(model.size).to(device=device, dtype=dtype)
    tokens = torch.zeros(1, length, dtype=torch.int64, device=device)
    return _best(lambda: there(tokens), _waiter(device))


@contextmanager
def _bundles(model: Decoder) -> Generator[dict[str, Path]]:
    """The decoder in float32 and float16."""
    from twoheads.compiler import compile_model
    from twoheads.export import narrow_values, write_bundle

    compiled = compile_model(model, example_inputs=example(), block_size=BLOCK, key_tile=TILE)
    with tempfile.TemporaryDirectory() as folder:
        wide = write_bundle(compiled, Path(folder) / "wide")
        yield {"float32": wide, "float16": write_bundle(narrow_values(compiled), Path(folder) / "narrow")}


def _ours(bundle: Path, backend: str, size: Size) -> Callable[[int], float]:
    """A bundle that is opened at its first length and stays open."""
    opened: list[Any] = []

    def run(length: int) -> float:
        from twoheads.runtime import load

        if not opened:
            opened.append(load(bundle, backend=backend))
        tokens = np.random.default_rng(0).integers(0, size.vocabulary, length)
        return _best(lambda: opened[0].run(tokens, output="hidden", positions=[-1]), lambda: None)

    return run


def _whole(model: Decoder, length: int, lengths: tuple[int, ...]) -> float:
    """One engine of the whole model at this length, in float16, by ONNX Runtime's TensorRT provider."""
    if length not in lengths:
        raise RuntimeError("not built: minutes and gigabytes")
    import onnxruntime  # type: ignore[import-untyped]

    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("no TensorrtExecutionProvider")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whole.onnx"
        tokens = torch.zeros(1, length, dtype=torch.int64)
        torch.onnx.export(model, (tokens,), str(file), dynamo=True, verbose=False)
        options = {"trt_fp16_enable": "1", "device_id": "0"}
        session = onnxruntime.InferenceSession(str(file), providers=[("TensorrtExecutionProvider", options)])
        given = {session.get_inputs()[0].name: tokens.numpy()}
        return _best(lambda: session.run(None, given), lambda: None)
