"""ONNX Runtime's C interface by ctypes, as far as its Python package has no such thing: sharing packed weights.

The package brings the library beside its own module. The library's functions stand in one table, and "the ordering of
these fields must not change after that version has shipped": a function's place is as good as its name.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["CInterface", "c_interface"]

VERSION = 12
"""Of the interface: of the last function in :data:`FUNCTIONS`."""

FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "CreateEnv": (3, (c_int, c_char_p, c_void_p)),
    "CreateSessionOptions": (10, (c_void_p,)),
    "DisableMemPattern": (17, (c_void_p,)),
    "SetSessionLogSeverityLevel": (22, (c_void_p, c_int)),
    "SetIntraOpNumThreads": (24, (c_void_p, c_int)),
    "SetInterOpNumThreads": (25, (c_void_p, c_int)),
    "SessionGetInputCount": (30, (c_void_p, c_void_p)),
    "SessionGetOutputCount": (31, (c_void_p, c_void_p)),
    "SessionGetInputTypeInfo": (33, (c_void_p, c_size_t, c_void_p)),
    "SessionGetOutputTypeInfo": (34, (c_void_p, c_size_t, c_void_p)),
    "SessionGetInputName": (36, (c_void_p, c_size_t, c_void_p, c_void_p)),
    "SessionGetOutputName": (37, (c_void_p, c_size_t, c_void_p, c_void_p)),
    "CreateTensorWithDataAsOrtValue": (49, (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_int, c_void_p)),
    "CastTypeInfoToTensorInfo": (55, (c_void_p, c_void_p)),
    "GetTensorElementType": (60, (c_void_p, c_void_p)),
    "GetDimensionsCount": (61, (c_void_p, c_void_p)),
    "GetDimensions": (62, (c_void_p, c_void_p, c_size_t)),
    "CreateCpuMemoryInfo": (69, (c_int, c_int, c_void_p)),
    "AllocatorFree": (76, (c_void_p, c_void_p)),
    "GetAllocatorWithDefaultOptions": (78, (c_void_p,)),
    "AddSessionConfigEntry": (130, (c_void_p, c_char_p, c_char_p)),
    "RunWithBinding": (133, (c_void_p, c_void_p, c_void_p)),
    "CreateIoBinding": (134, (c_void_p, c_void_p)),
    "BindInput": (136, (c_void_p, c_char_p, c_void_p)),
    "BindOutput": (137, (c_void_p, c_char_p, c_void_p)),
    "CreateAndRegisterAllocator": (144, (c_void_p, c_void_p, c_void_p)),
    "AddInitializer": (150, (c_void_p, c_char_p, c_void_p)),
    "CreatePrepackedWeightsContainer": (166, (c_void_p,)),
    "CreateSessionWithPrepackedWeightsContainer": (168, (c_void_p, c_char_p, c_void_p, c_void_p, c_void_p)),
    "AddExternalInitializers": (210, (c_void_p, c_void_p, c_void_p, c_size_t)),
}
"""Those that return a status: the place in the table, and what they take."""

RELEASES = {
    "Status": 93,
    "Session": 95,
    "Value": 96,
    "TypeInfo": 98,
    "SessionOptions": 100,
    "IoBinding": 135,
    "PrepackedWeightsContainer": 167,
}
"""Those that let something go, by what."""

ERROR_MESSAGE = 2
WARNINGS, ARENA, DEFAULT_MEMORY = 3, 1, 0
"""Log errors alone; take intermediate arrays from one arena; in the host's memory."""


class _Base(ctypes.Structure):
    _fields_ = (
        ("GetApi", ctypes.CFUNCTYPE(c_void_p, c_uint32)),
        ("GetVersionString", ctypes.CFUNCTYPE(c_char_p)),
    )


class CInterface:
    """The functions of one loaded library, which stays loaded.

    Args:
        library: The file.

    Attributes:
        environment: What all sessions belong to.
        memory: Says that tensors lie in the host's memory.

    Raises:
        OSError: The file can't be loaded.
        RuntimeError: It is older than the functions, or a function failed, with ONNX Runtime's words.
    """

    def __init__(self, library: Path) -> None:
        get_base = ctypes.CDLL(str(library)).OrtGetApiBase
        get_base.restype = POINTER(_Base)
        table = ctypes.cast(get_base().contents.GetApi(VERSION), POINTER(c_void_p))
        if not table:
            raise RuntimeError(f"{library} has no interface of version {VERSION}")
        self._message = ctypes.CFUNCTYPE(c_char_p, c_void_p)(_place(table, ERROR_MESSAGE))
        self._functions = {
            name: ctypes.CFUNCTYPE(c_void_p, *takes)(_place(table, place)) for name, (place, takes) in FUNCTIONS.items()
        }
        self._releases = {
            name: ctypes.CFUNCTYPE(None, c_void_p)(_place(table, place)) for name, place in RELEASES.items()
        }
        self.environment = self.made("CreateEnv", WARNINGS, b"twoheads")
        self.memory = self.made("CreateCpuMemoryInfo", ARENA, DEFAULT_MEMORY)
        self.call("CreateAndRegisterAllocator", self.environment, self.memory, None)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function.

        Raises:
            RuntimeError: It fails.
        """
        status = self._functions[name](*arguments)
        if status:
            text = self._message(status).decode(errors="replace")
            self._releases["Status"](status)
            raise RuntimeError(text)

    def made(self, name: str, *arguments: Any) -> c_void_p:
        """What a function gives through its last argument, which is left out here.

        Raises:
            RuntimeError: It fails.
        """
        found = c_void_p()
        self.call(name, *arguments, byref(found))
        return found

    def number(self, name: str, *arguments: Any) -> int:
        """The same of a function that gives a number.

        Raises:
            RuntimeError: It fails.
        """
        found = c_size_t()
        self.call(name, *arguments, byref(found))
        return found.value

    def release(self, kind: str, what: c_void_p) -> None:
        """Lets something go that was made: one of :data:`RELEASES`."""
        self._releases[kind](what)


def _place(table: Any, place: int) -> int:
    address: int = table[place]
    return address


@lru_cache(maxsize=1)
def c_interface() -> CInterface | None:
    """That of the library beside the package onnxruntime; ``None`` where it brings none of its version."""
    import onnxruntime  # type: ignore[import-untyped]

    folder, version = Path(onnxruntime.__file__).parent / "capi", onnxruntime.__version__
    names = {"linux": f"libonnxruntime.so.{version}", "darwin": f"libonnxruntime.{version}.dylib"}
    library = folder / names.get(sys.platform, "none")
    try:
        return CInterface(library) if library.is_file() else None
    except (OSError, RuntimeError):
        return None
