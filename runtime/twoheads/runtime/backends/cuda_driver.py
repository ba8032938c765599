"""A CUDA device through the driver's own library, which every driver brings: no package is needed for it."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any, ClassVar

import numpy as np

from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.runtime.backends.cuda_kernels import KERNELS, kernel_image
from twoheads.runtime.backends.device_protocol import DeviceArray, HostBytes, Kernel, Rows

__all__ = ["DRIVER_FUNCTIONS", "CudaDevice", "DeviceError", "Memcpy2D"]

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")

NON_BLOCKING_STREAM = 1
EVENT_WITHOUT_TIMING = 2
PORTABLE_HOST_MEMORY = 1
RELAXED_CAPTURE = 2
"""Other threads, and the caches of libraries, may allocate memory meanwhile."""
HOST_MEMORY, DEVICE_MEMORY = 1, 2


class DeviceError(TwoheadsError):
    """The device, or its driver, failed or has too little memory."""


class Memcpy2D(ctypes.Structure):
    """``CUDA_MEMCPY2D`` of the driver's ``cuda.h``."""

    _fields_: ClassVar = [
        ("srcXInBytes", c_size_t),
        ("srcY", c_size_t),
        ("srcMemoryType", c_int),
        ("srcHost", c_void_p),
        ("srcDevice", c_uint64),
        ("srcArray", c_void_p),
        ("srcPitch", c_size_t),
        ("dstXInBytes", c_size_t),
        ("dstY", c_size_t),
        ("dstMemoryType", c_int),
        ("dstHost", c_void_p),
        ("dstDevice", c_uint64),
        ("dstArray", c_void_p),
        ("dstPitch", c_size_t),
        ("WidthInBytes", c_size_t),
        ("Height", c_size_t),
    ]


DRIVER_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (c_void_p, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (c_void_p, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemcpy2DAsync_v2": (c_void_p, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuModuleLoadData": (c_void_p, c_void_p),
    "cuModuleGetFunction": (c_void_p, c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}
"""The driver's functions that are called, and the types of their arguments; all return a ``CUresult``."""


class CudaDevice:
    """One NVIDIA GPU, in the context that CUDA's runtime, and so ONNX Runtime, uses as well.

    Args:
        ordinal: Which one, from 0.
        library: The driver's library, opened; ``None`` to look for it.

    Raises:
        InputError: There is no driver.
        DeviceError: There is no such device.
    """

    def __init__(self, ordinal: int = 0, library: Any = None) -> None:
        self._library = _open_library() if library is None else library
        for name, types in DRIVER_FUNCTIONS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, c_int
        self._do("cuInit", 0)
        device, context, nbytes = c_int(), c_void_p(), c_size_t()
        self._do("cuDeviceGet", ctypes.addressof(device), ordinal)
        text = ctypes.create_string_buffer(256)
        self._do("cuDeviceGetName", text, len(text), device)
        self.name = text.value.decode()
        self._do("cuDeviceTotalMem_v2", ctypes.addressof(nbytes), device)
        self._total = nbytes.value
        self._do("cuDevicePrimaryCtxRetain", ctypes.addressof(context), device)
        self._context = context
        self._thread = threading.local()
        self._functions: dict[str, c_void_p] = {}

    def _do(self, name: str, *arguments: Any) -> None:
        """Calls a function of the driver."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorString(code, ctypes.addressof(text))
            problem = (text.value or b"unknown").decode()
            raise DeviceError("CUDA", f"{name} failed: {problem} (error {code})", "see what nvidia-smi says")

    def _here(self, name: str, *arguments: Any) -> None:
        """Calls a function that needs the context, which each thread has to make its own."""
        if not getattr(self._thread, "current", False):
            self._do("cuCtxSetCurrent", self._context)
            self._thread.current = True
        self._do(name, *arguments)

    def _handle(self, name: str, *arguments: Any) -> int:
        """What a function that makes something writes to its first argument."""
        handle = c_void_p()
        self._here(name, ctypes.addressof(handle), *arguments)
        return handle.value or 0

    def total_bytes(self) -> int:
        return self._total

    def allocate(self, nbytes: int) -> int:
        return self._handle("cuMemAlloc_v2", nbytes)

    def free(self, address: int) -> None:
        self._here("cuMemFree_v2", address)

    def pinned(self, nbytes: int) -> HostBytes:
        address = self._handle("cuMemHostAlloc", nbytes, PORTABLE_HOST_MEMORY)
        memory: Any = (c_ubyte * nbytes).from_address(address)
        weakref.finalize(memory, self._library.cuMemFreeHost, address)
        array: HostBytes = np.frombuffer(memory, np.uint8)
        return array

    def new_stream(self) -> int:
        return self._handle("cuStreamCreate", NON_BLOCKING_STREAM)

    def new_event(self) -> int:
        return self._handle("cuEventCreate", EVENT_WITHOUT_TIMING)

    def record(self, event: int, stream: int) -> None:
        self._here("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._here("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self) -> None:
        self._here("cuCtxSynchronize")

    def copy(self, target: Rows, source: Rows, stream: int) -> None:
        if target.height == 1:
            # All addresses are of one space: the driver knows which are its own.
            self._here("cuMemcpyAsync", _address(target), _address(source), target.width, stream)
            return
        plan = Memcpy2D(WidthInBytes=target.width, Height=target.height)
        plan.srcPitch, plan.dstPitch = source.pitch, target.pitch
        plan.srcMemoryType, plan.dstMemoryType = _kind(source), _kind(target)
        plan.srcDevice = plan.srcHost = _address(source)
        plan.dstDevice = plan.dstHost = _address(target)
        self._here("cuMemcpy2DAsync_v2", ctypes.addressof(plan), stream)

    def zero(self, target: DeviceArray, stream: int) -> None:
        self._here("cuMemsetD8Async", target.address, 0, target.nbytes, stream)

    def launch(self, kernel: Kernel, blocks: int, arguments: Sequence[int], stream: int) -> None:
        if not self._functions:
            self._load_kernels()
        # Triton's kernels take two more addresses, of scratch memory that ours do not use.
        kinds = {"p": c_uint64, "i": ctypes.c_int32}
        values = [kinds[kind](argument) for kind, argument in zip(kernel.parameters, arguments, strict=True)]
        values += [c_uint64(), c_uint64()]
        places = (c_void_p * len(values))(*map(ctypes.addressof, values))
        grid, block = (blocks, 1, 1), (kernel.threads, 1, 1)
        function = self._functions[kernel.name]
        self._here("cuLaunchKernel", function, *grid, *block, kernel.shared, stream, ctypes.addressof(places), None)

    def _load_kernels(self) -> None:
        for kernel in KERNELS:
            image = ctypes.create_string_buffer(kernel_image(kernel))
            module = self._handle("cuModuleLoadData", ctypes.addressof(image))
            self._functions[kernel.name] = c_void_p(self._handle("cuModuleGetFunction", module, kernel.name.encode()))

    def begin_capture(self, stream: int) -> None:
        if not self._functions:
            self._load_kernels()
        self._here("cuStreamBeginCapture_v2", stream, RELAXED_CAPTURE)

    def end_capture(self, stream: int) -> int:
        graph = c_void_p()
        self._here("cuStreamEndCapture", stream, ctypes.addressof(graph))
        try:
            return self._handle("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._here("cuGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        graph = c_void_p()
        # The error that led here is the one to tell; the capture may have been invalidated by it.
        self._library.cuStreamEndCapture(stream, ctypes.addressof(graph))
        if graph.value:
            self._library.cuGraphDestroy(graph)

    def replay(self, graph: int, stream: int) -> None:
        self._here("cuGraphLaunch", graph, stream)

    def drop(self, graph: int) -> None:
        self._here("cuGraphExecDestroy", graph)


def _open_library() -> Any:
    problems: list[str] = []
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problems.append(str(error))
    raise InputError("a CUDA device", f"has no driver here ({problems[0]})", "install NVIDIA's driver for the GPU")


def _address(rows: Rows) -> int:
    return rows.place if isinstance(rows.place, int) else int(rows.place.ctypes.data)


def _kind(rows: Rows) -> int:
    return DEVICE_MEMORY if isinstance(rows.place, int) else HOST_MEMORY
