"""The names under which backends are known, and how each is opened."""

from __future__ import annotations

from collections.abc import Mapping

from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.onnxruntime_provider import PROVIDERS
from twoheads.runtime.backends.protocol import Backend

__all__ = [
    "ARTIFACT_BACKENDS",
    "BACKENDS",
    "DEVICES",
    "DEVICE_BACKENDS",
    "HOST_BACKENDS",
    "LANES",
    "PRECISIONS",
    "open_backend",
    "open_host_backend",
    "split_name",
]

ARTIFACT_BACKENDS = (
    "qnn",
    "qnn-emulator",
    "rknn",
    "rknn-simulator",
    "onnxruntime-int8",
    "openvino-ir",
    "litert",
    "executorch",
    "iree",
    "coreml-weights",
    "coreml",
    "tensorrt-engine",
    "tensorrt-rtx",
)
"""Those that run what ``twoheads build`` made."""
HOST_BACKENDS = ("onnxruntime", "openvino", *ARTIFACT_BACKENDS)
"""Those that compute in the host's memory."""
DEVICE_BACKENDS = ("cuda", "tensorrt")
"""Those that compute in the memory of a device."""
BACKENDS = HOST_BACKENDS + DEVICE_BACKENDS
DEVICES: Mapping[str, tuple[str, ...]] = {"onnxruntime": tuple(PROVIDERS), "openvino": ("CPU", "GPU", "NPU")}
"""What may follow a backend's name after a colon."""
LANES = 4
"""Streams of a device, if nobody says otherwise."""
PRECISIONS = ("f32", "bf16", "f16")
"""In what a backend multiplies. Values between engines are of the bundle's dtype in both."""

OWNERS = {"bf16": ("openvino", "openvino:CPU"), "f16": ("tensorrt", "openvino:GPU", "openvino:NPU")}
"""Which backends have a precision that is not float32."""


def split_name(name: str) -> tuple[str, str | None]:
    """A backend's own name, and its device where one is named: ``openvino:GPU``.

    Raises:
        InputError: There is no such backend, or it has no such device.
    """
    own, colon, device = name.partition(":")
    if own not in BACKENDS:
        raise InputError("backend", f"{own!r} is unknown", f"use one of: {', '.join(BACKENDS)}")
    if not colon:
        return own, None
    if own not in DEVICES:
        raise InputError("backend", f"{own} takes no device, and {device!r} is named", f"use {own}")
    if device not in DEVICES[own]:
        known = ", ".join(f"{own}:{one}" for one in DEVICES[own])
        raise InputError("backend", f"{name!r} is unknown", f"use one of: {own}, {known}")
    return own, device


def open_backend(name: str, *, precision: str = "f32", threads: int = 1) -> Backend:
    """The backend called ``name``; what it needs is imported only now.

    Args:
        name: One of :data:`BACKENDS`, some with one of their :data:`DEVICES` behind a colon.
        precision: One of :data:`PRECISIONS`; :data:`OWNERS` has the backends of the last two.
        threads: Calls that will run at the same time; on a device, streams.

    Raises:
        InputError: There is no such backend or precision, or its package is not installed.
    """
    own, device = split_name(name)
    if precision not in PRECISIONS:
        raise InputError("precision", f"{precision!r} is unknown", f"use one of: {', '.join(PRECISIONS)}")
    if own in ARTIFACT_BACKENDS:
        if precision != "f32":
            raise InputError("precision", f"is {precision}; {name} computes as the bundle was built", "leave it out")
        from twoheads.runtime.backends.emulator import EmulatorBackend

        return EmulatorBackend(name, threads=threads)
    owners = OWNERS.get(precision, (name,))
    if name not in owners:
        raise InputError("precision", f"is {precision}, which {name} does not have", f'use backend="{owners[0]}"')
    if own in DEVICE_BACKENDS:
        from twoheads.runtime.backends.onnxruntime_cuda import CudaBackend

        return CudaBackend(name, precision=precision, lanes=threads)
    if own == "openvino":
        from twoheads.runtime.backends.openvino_cpu import OpenVinoBackend

        return OpenVinoBackend(precision=precision, threads=threads, device=device)
    if device is not None:
        from twoheads.runtime.backends.onnxruntime_provider import ProviderBackend

        return ProviderBackend(device)
    from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend

    return OnnxRuntimeBackend()


def open_host_backend(name: str, *, precision: str = "f32", threads: int = 1) -> Backend:
    """As :func:`open_backend`, for who times single calls: a device's only queue them.

    Raises:
        InputError: As that; or it is a device's.
    """
    if name in DEVICE_BACKENDS:
        raise InputError("backend", f"{name} only queues its calls, which this command times", "time whole runs")
    return open_backend(name, precision=precision, threads=threads)
