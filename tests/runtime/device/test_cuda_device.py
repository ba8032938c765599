"""What can be known of the driver's calls without a driver: signatures, a structure, what is said if it is missing."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import triton  # type: ignore[import-untyped]

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import InputError
from twoheads.runtime import load
from twoheads.runtime.backends.cuda_driver import DRIVER_FUNCTIONS, CudaDevice, Memcpy2D

HEADER = Path(triton.__file__).parent / "backends/nvidia/include/cuda.h"
INTEGERS = {
    "int": 4,
    "unsignedint": 4,
    "CUdevice": 4,
    "size_t": 8,
    "unsignedlonglong": 8,
    "CUdeviceptr": 8,
    "unsignedchar": 1,
}
ENUMS = ("CUresult", "CUstreamCaptureMode", "CUmemorytype")


@pytest.fixture(scope="module")
def header() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)


def kind(declared: str) -> tuple[str, int]:
    """Whether a C declaration, with or without a name, is a pointer or a number, and its bytes."""
    words = re.findall(r"\w+|\*", declared.replace("const", ""))
    if "*" in words:
        return "pointer", 8
    bare = "".join(words if words[-1] in INTEGERS or len(words) == 1 else words[:-1])
    if bare in INTEGERS:
        return "number", INTEGERS[bare]
    return ("number", 4) if bare in ENUMS else ("pointer", 8)  # handles are pointers


def ours(declared) -> tuple[str, int]:
    pointer = declared in (ctypes.c_void_p, ctypes.c_char_p)
    return "pointer" if pointer else "number", ctypes.sizeof(declared)


@pytest.mark.parametrize("name", sorted(DRIVER_FUNCTIONS))
def test_signatures_are_those_of_the_header(header, name):
    known = re.sub(r"_v\d$", "", name)
    renamed = {"cuGraphInstantiateWithFlags": "cuGraphInstantiate"}.get(name, known)
    found = re.search(rf"CUresult CUDAAPI {renamed}\((.*?)\);", header, re.DOTALL)
    assert found is not None
    arguments = [] if found.group(1).strip() == "void" else found.group(1).split(",")
    assert [ours(declared) for declared in DRIVER_FUNCTIONS[name]] == [kind(argument) for argument in arguments]
    if name != known or renamed != name:  # the header's name stands for this entry of the library
        assert re.search(rf"#define {renamed}\s+(__CUDA_API_PTSZ\()?{name}\b", header)


def test_the_structure_is_that_of_the_header(header):
    fields = re.search(r"typedef struct CUDA_MEMCPY2D_st \{(.*?)\}", header, re.DOTALL)
    assert fields is not None
    lines = [line.strip() for line in fields.group(1).split(";") if line.strip()]
    assert [re.findall(r"\w+", line)[-1] for line in lines] == [field[0] for field in Memcpy2D._fields_]
    assert [kind(line) for line in lines] == [ours(field[1]) for field in Memcpy2D._fields_]


def test_a_missing_driver_or_package_is_said_in_a_line(tmp_path):
    folder = write_tiny(tmp_path / "tiny", Tiny())
    for backend in ("cuda", "tensorrt"):
        with pytest.raises(InputError, match=r"pip install onnxruntime-gpu"):
            load(folder, backend=backend)
    with pytest.raises(InputError, match="f16, which cuda does not have"):
        load(folder, backend="cuda", precision="f16")
    with pytest.raises(InputError, match="install NVIDIA's driver"):
        CudaDevice()
