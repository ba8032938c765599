"""The speed of matrix products that a backend reaches on this machine: what a run's speed is measured against."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

from twoheads.graphs.program.program import Port
from twoheads.graphs.scratch import scratch_folder
from twoheads.runtime.backends.protocol import Backend, Call, EngineFile

__all__ = ["MatrixPeak"]

SIZE = 512
"""Rows, columns and inner dimension: all three matrices (3 MiB) fit into a core's cache, and no loop is short."""

SECONDS = 0.3
"""How long one measurement takes."""

ROUNDS = 4
"""Products between two looks at the clock."""


class MatrixPeak:
    """Square float32 products, one loop a thread, each with a constant right-hand side as a model's weights are.

    Args:
        backend: What computes them.
        threads: Loops at the same time, as many as a run has workers.
    """

    def __init__(self, backend: Backend, threads: int) -> None:
        rng = np.random.default_rng(0)
        left, right, product = Port("left", "float32", (SIZE, SIZE)), "right", Port("product", "float32", (SIZE, SIZE))
        self._weights = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
        with scratch_folder() as folder:
            path = _write_product(folder, left.name, right, product.name)
            engine = backend.load_engine(EngineFile(path, (left,), (product,), {right: self._weights}))
        self._calls: list[Call] = []
        for _ in range(threads):
            call = engine.new_call()
            call.bind_input(0, backend.tensor(rng.standard_normal((SIZE, SIZE)).astype(np.float32)))
            call.bind_output(0, backend.tensor(np.empty((SIZE, SIZE), np.float32)))
            call.run()
            self._calls.append(call)

    def measure(self, seconds: float = SECONDS) -> float:
        """Floating-point operations a second, all threads together."""
        start = threading.Barrier(len(self._calls))
        with ThreadPoolExecutor(len(self._calls)) as pool:
            rates = list(pool.map(lambda call: _rate(call, start, seconds), self._calls))
        return sum(rates) * 2 * SIZE**3


def _rate(call: Call, start: threading.Barrier, seconds: float) -> float:
    """Calls a second of one thread."""
    start.wait()
    began = time.perf_counter()
    calls = 0
    while (elapsed := time.perf_counter() - began) < seconds or not calls:
        for _ in range(ROUNDS):
            call.run()
        calls += ROUNDS
    return calls / elapsed


def _write_product(folder: Path, left: str, right: str, product: str) -> Path:
    """An engine file of one product, whose right-hand side lies in a file beside it, as a bundle's weights do."""
    shape: Sequence[int] = (SIZE, SIZE)
    (folder / "weights.bin").write_bytes(bytes(4 * SIZE * SIZE))
    weights = TensorProto(name=right, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "weights.bin"), ("offset", "0"), ("length", str(4 * SIZE * SIZE))):
        weights.external_data.add(key=key, value=text)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [left, right], [product])],
        "product",
        [helper.make_tensor_value_info(left, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(product, TensorProto.FLOAT, shape)],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    save(model, folder / "product.onnx")
    return folder / "product.onnx"
