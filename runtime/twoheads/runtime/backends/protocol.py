"""What the runtime asks of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from twoheads.graphs.errors import BundleError, TwoheadsError
from twoheads.graphs.program.program import Port
from twoheads.runtime.backends.device_protocol import Device, Stream
from twoheads.runtime.bundle.artifacts import ArtifactFiles

__all__ = [
    "ArtifactBackend",
    "Backend",
    "Call",
    "DeviceBackend",
    "DeviceEngine",
    "EngineFile",
    "EngineHandle",
    "Ports",
    "check_ports",
    "engine_failure",
]


LARGE_CALL = 4 << 20
"""Bytes of the ports of a large call, weights not among them."""


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A file of a bundle, and what it is opened with.

    Attributes:
        path: The file.
        inputs, outputs: The ports that the program says it has, weights not among them.
        weights: The arrays that take the place of its own weights, by port name.
        threads: Of the kernels of one call; with several, calls come one at a time.
        own_weights: Whether the arrays are what the file itself refers to.
        shared: Whether engines of other sizes read the same arrays: a backend that can then keeps what its kernels
            pack of them once, and not once an engine.
        in_place: Whether float32 arrays are read where they lie, and no kernel packs them: products of several rows
            take longer then.
        frees: Whether memory that calls of any engine took goes back to the system behind each call of this one, where
            the backend keeps such.
    """

    path: Path
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    weights: Mapping[str, npt.NDArray[Any]]
    threads: int = 1
    own_weights: bool = False
    shared: bool = False
    in_place: bool = False
    frees: bool = False

    @property
    def large_calls(self) -> bool:
        """Whether a call's arrays are so large that finding memory for each costs nothing beside computing it.

        ONNX Runtime lays out the intermediate arrays of a call in one piece, once it has seen a call: that is as much
        memory again as what the first call's arrays took, which its arena keeps.
        """
        return sum(port.nbytes for port in (*self.inputs, *self.outputs)) >= LARGE_CALL


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

    @property
    def in_place(self) -> bool:
        """Whether arrays are read where they lie (:attr:`EngineFile.in_place`), and outputs may lie over inputs."""
        ...

    @property
    def shares_packed(self) -> bool:
        """Whether engines that are opened as :attr:`EngineFile.shared` keep once what their kernels pack."""
        ...

    def load_engine(self, file: EngineFile) -> EngineHandle:
        """Opens ``file``; its weights are not copied.

        Raises:
            BundleError: The file can't be opened, or has other ports.
        """
        ...

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """Wraps a contiguous array without copying it; the tensor keeps the array alive."""
        ...


@runtime_checkable
class DeviceEngine(EngineHandle, Protocol):
    """An engine of a :class:`DeviceBackend`. Its calls bind device arrays.

    :meth:`Call.run` queues the call, with what is bound then, on the lane's stream, and returns.
    """

    lanes: int
    """It can be called on the backend's first so many lanes."""

    def new_call(self, lane: int = 0) -> Call:
        """A call on the stream of lane ``lane``, with nothing bound."""
        ...


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend whose engines read and write the memory of a device; values stay there between calls."""

    device: Device
    lanes: tuple[Stream, ...]
    """The streams on which engines compute, one or more."""


@runtime_checkable
class ArtifactBackend(Backend, Protocol):
    """A backend that runs what ``twoheads build`` made for a target, and not the bundle's own engines."""

    target: str
    precisions: tuple[str, ...]
    """In which it can compute what was built."""

    def load_artifact(
        self,
        files: ArtifactFiles,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, npt.NDArray[Any]],
    ) -> EngineHandle:
        """Opens an artifact of the engine with the ports ``inputs`` and ``outputs`` and all its ``weights``.

        Raises:
            BundleError: It can't be opened, or has other ports.
        """
        ...


def engine_failure(path: Path, error: Exception) -> TwoheadsError:
    """The error of a call that a backend could not do."""
    message = " ".join(str(error).split())[:300]
    return TwoheadsError(
        str(path),
        f"an engine call failed: {message}",
        "check the input's numbers; if they are the model's, verify the bundle",
    )


Ports: TypeAlias = list[tuple[str, str, tuple[int, ...]]]
"""Ports as a backend finds them: name, NumPy dtype, shape."""


def check_ports(file: EngineFile, inputs: Ports, outputs: Ports) -> None:
    """Raises unless an open engine's ports are the program's, in order.

    Raises:
        BundleError: Names both.
    """
    for found, expected in ((inputs, file.inputs), (outputs, file.outputs)):
        want = [(port.name, port.dtype, tuple(port.shape)) for port in expected]
        if found != want:
            problem = f"has the ports {found}, the program expects {want}"
            raise BundleError(str(file.path), problem, "compile the model again with this twoheads")
