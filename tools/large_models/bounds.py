"""What a run can't take less than: reading the weights once, and its products at the machine's own speed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tools.measured_process import measure_json, twoheads_command
from twoheads.export.bench.matrix_peak import MatrixPeak
from twoheads.runtime.backends.registry import open_backend
from twoheads.runtime.execution.crew import available_threads

__all__ = ["forget_file", "product_seconds", "reading_seconds", "writing_seconds"]

CHUNK = 16 << 20


def reading_seconds(path: Path) -> float:
    """Seconds of reading a file once, from the disk."""
    forget_file(path)
    buffer = bytearray(CHUNK)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - began


def writing_seconds(path: Path) -> float:
    """Seconds of writing as many bytes as a file has into a new one beside it, down to the disk."""
    left, chunk = path.stat().st_size, bytes(CHUNK)
    other = path.with_name(f"{path.name}.written")
    try:
        began = time.perf_counter()
        with other.open("wb", buffering=0) as file:
            while left > 0:
                left -= file.write(chunk[:left])
            os.fsync(file.fileno())
        return time.perf_counter() - began
    finally:
        other.unlink()


def forget_file(path: Path) -> None:
    """Has the system forget a file's pages, as far as it can: who reads it next reads the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def product_seconds(bundle: Path, tokens: int) -> float:
    """Operations of a run for hidden states, by its plan, over the speed of float32 products of 512 x 512."""
    words = ("plan", bundle, "--length", tokens, "--output", "hidden", "--json")
    _, plan = measure_json(twoheads_command(*words))
    threads = available_threads()
    peak = MatrixPeak(open_backend("onnxruntime", threads=threads), threads).measure(1.0)
    return float(plan["flops"]) / peak
