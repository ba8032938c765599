"""What the runtime asks of a backend, and the names under which backends are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program import Port

__all__ = ["BACKENDS", "Backend", "Call", "EngineHandle", "open_backend"]

BACKENDS = ("onnxruntime",)


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
    ) -> EngineHandle:
        """Opens the engine file ``path``, its weights replaced by the arrays ``weights`` (by port name), not copied.

        Raises:
            BundleError: The file can't be opened or its ports are not ``inputs`` and ``outputs``.
        """
        ...

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """Wraps a contiguous array without copying it; the tensor keeps the array alive."""
        ...


def open_backend(name: str) -> Backend:
    """The backend called ``name``; what it needs is imported only now.

    Raises:
        InputError: There is no such backend, or its package is not installed.
    """
    if name == "onnxruntime":
        from twoheads.runtime.backend_onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    raise InputError("backend", f"{name!r} is unknown", f"use one of: {', '.join(BACKENDS)}")
