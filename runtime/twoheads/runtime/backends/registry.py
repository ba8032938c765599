"""The names under which backends are known, and how each is opened."""

from __future__ import annotations

from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.protocol import Backend

__all__ = [
    "ARTIFACT_BACKENDS",
    "BACKENDS",
    "DEVICE_BACKENDS",
    "HOST_BACKENDS",
    "LANES",
    "PRECISIONS",
    "open_backend",
    "open_host_backend",
]

ARTIFACT_BACKENDS = (
    "qnn-emulator",
    "rknn-simulator",
    "onnxruntime-int8",
    "openvino-ir",
    "litert",
    "executorch",
    "iree",
)
"""Those that run what ``twoheads build`` made."""
HOST_BACKENDS = ("onnxruntime", "openvino", *ARTIFACT_BACKENDS)
"""Those that compute in the host's memory."""
DEVICE_BACKENDS = ("cuda", "tensorrt")
"""Those that compute in the memory of a device."""
BACKENDS = HOST_BACKENDS + DEVICE_BACKENDS
LANES = 4
"""Streams of a device, if nobody says otherwise."""
PRECISIONS = ("f32", "bf16", "f16")
"""In what a backend multiplies. Values between engines are of the bundle's dtype in both."""


def open_backend(name: str, *, precision: str = "f32", threads: int = 1) -> Backend:
    """The backend called ``name``; what it needs is imported only now.

    Args:
        name: One of :data:`BACKENDS`.
        precision: One of :data:`PRECISIONS`; only ``openvino`` has ``bf16``, only ``tensorrt`` has ``f16``.
        threads: Calls that will run at the same time; on a device, streams.

    Raises:
        InputError: There is no such backend or precision, or its package is not installed.
    """
    if precision not in PRECISIONS:
        raise InputError("precision", f"{precision!r} is unknown", f"use one of: {', '.join(PRECISIONS)}")
    for special, owner in (("bf16", "openvino"), ("f16", "tensorrt")):
        if precision == special and name in ("onnxruntime", "openvino", *DEVICE_BACKENDS) and name != owner:
            raise InputError("precision", f"is {precision}, which {name} does not have", f'use backend="{owner}"')
    if name == "onnxruntime":
        from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    if name == "openvino":
        from twoheads.runtime.backends.openvino_cpu import OpenVinoBackend

        return OpenVinoBackend(precision=precision, threads=threads)
    if name in DEVICE_BACKENDS:
        from twoheads.runtime.backends.onnxruntime_cuda import CudaBackend

        return CudaBackend(name, precision=precision, lanes=threads)
    if name in BACKENDS:
        if precision != "f32":
            raise InputError("precision", f"is {precision}; {name} computes as the bundle was built", "leave it out")
        from twoheads.runtime.backends.emulator import EmulatorBackend

        return EmulatorBackend(name, threads=threads)
    raise InputError("backend", f"{name!r} is unknown", f"use one of: {', '.join(BACKENDS)}")


def open_host_backend(name: str, *, precision: str = "f32", threads: int = 1) -> Backend:
    """As :func:`open_backend`, for who times single calls: a device's only queue them.

    Raises:
        InputError: As that; or it is a device's.
    """
    if name in DEVICE_BACKENDS:
        raise InputError("backend", f"{name} only queues its calls, which this command times", "time whole runs")
    return open_backend(name, precision=precision, threads=threads)
