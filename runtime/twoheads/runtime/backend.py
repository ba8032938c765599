"""What the runtime asks of a backend, and the names under which backends are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.program import Port

__all__ = ["BACKENDS", "PRECISIONS", "Backend", "Call", "EngineHandle", "check_ports", "open_backend"]

BACKENDS = ("onnxruntime", "openvino", "qnn-emulator", "rknn-simulator")
PRECISIONS = ("f32", "bf16")
"""In what a backend multiplies. Values between engines are of the bundle's dtype in both."""


class Call(Protocol):
    """A reusable call of one engine, owned by one thread. Bindings stay until they are replaced."""

    def bind_input(self, port: int, tensor: Any) -> None:
        """Feeds the input ``port`` (its position) from a tensor of :meth:`Backend.tensor`."""
        ...

    def bind_output(self, port: int, tensor: Any) -> None:
        """Lets the output ``port`` be written straight into a tensor of :meth:`Backend.tensor`."""
        ...

    def run(self) -> None:
        """Runs the engine once; every port must be bound. Releases the interpreter lock while it computes."""
        ...


class EngineHandle(Protocol):
    """An engine that is open and may be called from several threads, each with a call of its own."""

    def new_call(self) -> Call:
        """A call with nothing bound."""
        ...


class Backend(Protocol):
    """Opens engines and wraps arrays. One backend serves one bundle."""

    name: str

    def load_engine(
        self,
        path: Path,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, npt.NDArray[Any]],
        threads: int = 1,
        own_weights: bool = False,
    ) -> EngineHandle:
        """Opens the engine file ``path``, its weights replaced by the arrays ``weights`` (by port name), not copied.

        With several ``threads`` the kernels of one call share them, and calls come one at a time. ``own_weights`` says
        that the arrays are what the file itself refers to.

        Raises:
            BundleError: The file can't be opened or its ports are not ``inputs`` and ``outputs``.
        """
        ...

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """Wraps a contiguous array without copying it; the tensor keeps the array alive."""
        ...


def open_backend(name: str, *, precision: str = "f32", threads: int = 1) -> Backend:
    """The backend called ``name``; what it needs is imported only now.

    Args:
        name: One of :data:`BACKENDS`.
        precision: One of :data:`PRECISIONS`; only ``openvino`` has ``bf16``.
        threads: Calls that will run at the same time.

    Raises:
        InputError: There is no such backend or precision, or its package is not installed.
    """
    if precision not in PRECISIONS:
        raise InputError("precision", f"{precision!r} is unknown", f"use one of: {', '.join(PRECISIONS)}")
    if name == "onnxruntime":
        if precision != "f32":
            raise InputError("precision", f"is {precision}, and onnxruntime has f32 only", 'use backend="openvino"')
        from twoheads.runtime.backend_onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    if name == "openvino":
        from twoheads.runtime.backend_openvino import OpenVinoBackend

        return OpenVinoBackend(precision=precision, threads=threads)
    if name in BACKENDS:
        if precision != "f32":
            raise InputError("precision", f"is {precision}; {name} computes as the bundle was built", "leave it out")
        from twoheads.runtime.backend_emulator import EmulatorBackend

        return EmulatorBackend(name, threads=threads)
    raise InputError("backend", f"{name!r} is unknown", f"use one of: {', '.join(BACKENDS)}")


def check_ports(path: Path, found: Sequence[tuple[str, str, tuple[int, ...]]], expected: Sequence[Port]) -> None:
    """Raises unless an engine's ports, as (name, NumPy dtype, shape), are the program's, in order.

    Raises:
        BundleError: Names both.
    """
    want = [(port.name, port.dtype, tuple(port.shape)) for port in expected]
    if list(found) != want:
        raise BundleError(
            str(path),
            f"has the ports {list(found)}, the program expects {want}",
            "compile the model again with this twoheads",
        )
