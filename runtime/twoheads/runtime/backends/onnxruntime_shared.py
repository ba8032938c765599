"""Engines of ONNX Runtime that share the weights which their kernels have packed: those of runs, and of steps.

Kernels of quantised weights are slow unless these are packed. Sessions of the Python package pack their own each; those
that the C interface opens with one container keep every packed weight once, whatever the sizes of their engines.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from twoheads.graphs.errors import BundleError, InternalError
from twoheads.graphs.program.engines.port import Port
from twoheads.runtime.backends.onnxruntime_c import CInterface
from twoheads.runtime.backends.protocol import EngineFile, Ports, check_ports, engine_failure

__all__ = ["LENT_AS_THEY_ARE", "SharedEngine", "SharedWeights"]

ELEMENTS = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}
"""ONNX's numbers of NumPy's dtypes."""
NAMES = {number: name for name, number in ELEMENTS.items()}

LENT_AS_THEY_ARE = (
    "optimization.disable_specified_optimizers",
    "TransposeOptimizer;TransposeOptimizer_CPUExecutionProvider",
)
"""What a session is told that reads weights where they lie: no pass may turn one over.

A transposition that moves behind an addition turns the addition's weight under the weight's own name. The session then
reads the array that it was lent under this name, which nobody turned: wrong numbers, or an error where sizes differ.
"""


class SharedWeights:
    """Packed weights, each once, for the engines that it opens. They stay until it and all of these are gone.

    Args:
        interface: Of the library.
    """

    def __init__(self, interface: CInterface) -> None:
        self.interface = interface
        self.container = interface.made("CreatePrepackedWeightsContainer")
        weakref.finalize(self, interface.release, "PrepackedWeightsContainer", self.container)

    def open(self, file: EngineFile, settings: Mapping[str, str]) -> SharedEngine:
        """Opens ``file`` with the session's ``settings``.

        Raises:
            BundleError: It can't be opened, or has other ports.
        """
        try:
            return SharedEngine(file, self, settings)
        except RuntimeError as error:
            raise BundleError(
                str(file.path), f"ONNX Runtime can't open it: {error}", "compile the model again"
            ) from error


class SharedEngine:
    """An open session, with the weights' arrays kept alive beside it.

    Raises:
        RuntimeError: It can't be opened.
        BundleError: It has other ports.
    """

    def __init__(self, file: EngineFile, weights: SharedWeights, settings: Mapping[str, str]) -> None:
        self.path = file.path
        self.weights = weights
        self.interface = interface = weights.interface
        self._arrays = dict(file.weights)
        options = interface.made("CreateSessionOptions")
        values = {
            name: _value(interface, _Bound.of(Port(name, a.dtype.name, a.shape)), a.ctypes.data)
            for name, a in file.weights.items()
        }
        try:
            _fill(interface, options, file, settings, values)
            self.session = interface.made(
                "CreateSessionWithPrepackedWeightsContainer",
                interface.environment,
                bytes(file.path),
                options,
                weights.container,
            )
        finally:
            interface.release("SessionOptions", options)
        weakref.finalize(self, _release, interface, self.session, tuple(values.values()))
        check_ports(file, _ports(interface, self.session, "Input"), _ports(interface, self.session, "Output"))
        self.inputs = tuple(map(_Bound.of, file.inputs))
        self.outputs = tuple(map(_Bound.of, file.outputs))

    def new_call(self) -> SharedCall:
        return SharedCall(self)


class SharedCall:
    """An I/O binding of one thread. About 4 microseconds a bind, and as many a run."""

    def __init__(self, engine: SharedEngine) -> None:
        self._engine = engine
        self._interface = engine.interface
        self._binding = self._interface.made("CreateIoBinding", engine.session)
        self._tensors: dict[tuple[str, int], Any] = {}
        weakref.finalize(self, self._interface.release, "IoBinding", self._binding)

    def bind_input(self, port: int, tensor: Any) -> None:
        self._bind("BindInput", port, self._engine.inputs[port], tensor)

    def bind_output(self, port: int, tensor: Any) -> None:
        self._bind("BindOutput", port, self._engine.outputs[port], tensor)

    def _bind(self, how: str, number: int, port: _Bound, tensor: Any) -> None:
        if tensor.element_type() != port.element or tuple(tensor.shape()) != port.shape:
            found = f"{NAMES.get(tensor.element_type(), '?')} {list(tensor.shape())}"
            raise InternalError(f"{self._engine.path}: {found} for the port {port.name.decode()} {list(port.shape)}")
        value = _value(self._interface, port, tensor.data_ptr())
        self._interface.call(how, self._binding, port.name, value)
        self._interface.release("Value", value)  # the binding holds it
        self._tensors[how, number] = tensor

    def run(self) -> None:
        try:
            self._interface.call("RunWithBinding", self._engine.session, None, self._binding)
        except RuntimeError as error:
            raise engine_failure(self._engine.path, error) from error


@dataclass(frozen=True, slots=True)
class _Bound:
    """A port as the interface wants it."""

    name: bytes
    element: int
    shape: tuple[int, ...]
    dimensions: Any
    nbytes: int

    @classmethod
    def of(cls, port: Port) -> _Bound:
        shape = tuple(port.shape)
        nbytes = prod(shape) * np.dtype(port.dtype).itemsize
        return cls(port.name.encode(), ELEMENTS[port.dtype], shape, (c_int64 * len(shape))(*shape), nbytes)


def _value(interface: CInterface, port: _Bound, address: int) -> c_void_p:
    """A tensor of the memory at ``address``."""
    return interface.made(
        "CreateTensorWithDataAsOrtValue",
        interface.memory,
        address,
        port.nbytes,
        port.dimensions,
        len(port.shape),
        port.element,
    )


def _fill(
    interface: CInterface,
    options: c_void_p,
    file: EngineFile,
    settings: Mapping[str, str],
    values: Mapping[str, c_void_p],
) -> None:
    """Sets what a session is opened with."""
    interface.call("SetSessionLogSeverityLevel", options, 3)
    if file.large_calls:
        interface.call("DisableMemPattern", options)
    interface.call("SetIntraOpNumThreads", options, file.threads)
    interface.call("SetInterOpNumThreads", options, 1)
    for name, setting in settings.items():
        interface.call("AddSessionConfigEntry", options, name.encode(), setting.encode())
    if values:
        interface.call("AddSessionConfigEntry", options, *(word.encode() for word in LENT_AS_THEY_ARE))
    for name, value in values.items():
        interface.call("AddInitializer", options, name.encode(), value)
    if values and not file.own_weights:  # constants are folded from the file, unless it is told of others
        names = (c_char_p * len(values))(*(name.encode() for name in values))
        pointers = (c_void_p * len(values))(*(value.value for value in values.values()))
        interface.call("AddExternalInitializers", options, names, pointers, len(values))


def _release(interface: CInterface, session: c_void_p, values: Sequence[c_void_p]) -> None:
    interface.release("Session", session)
    for value in values:
        interface.release("Value", value)


def _ports(interface: CInterface, session: c_void_p, side: str) -> Ports:
    """The inputs or outputs of a session as (name, NumPy dtype, shape)."""
    allocator = interface.made("GetAllocatorWithDefaultOptions")
    found: Ports = []
    for number in range(interface.number(f"SessionGet{side}Count", session)):
        text = interface.made(f"SessionGet{side}Name", session, number, allocator)
        name = ctypes.string_at(text.value or 0).decode()
        interface.call("AllocatorFree", allocator, text)
        info = interface.made(f"SessionGet{side}TypeInfo", session, number)
        tensor, element = interface.made("CastTypeInfoToTensorInfo", info), c_int()
        interface.call("GetTensorElementType", tensor, byref(element))
        rank = interface.number("GetDimensionsCount", tensor)
        dimensions = (c_int64 * rank)()
        interface.call("GetDimensions", tensor, dimensions, c_size_t(rank))
        interface.release("TypeInfo", info)
        found.append((name, NAMES.get(element.value, str(element.value)), tuple(dimensions)))
    return found
