"""Array files from anybody: what NumPy writes is read, everything else is one clear error, and memory is not taken."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twoheads.graphs.errors import InputError
from twoheads.runtime.inputs.array_files import read_npy, read_npz

ARRAY = np.arange(60, dtype=np.int32).reshape(3, 4, 5)


def npy(array: Any = ARRAY) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + data


def shaped(shape: str, data: bytes = b"", dtype: str = "<i8") -> bytes:
    return header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n", data)


@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), np.array(3.5), np.zeros((0, 4)), ARRAY[::2] > 5])
def test_what_numpy_writes_is_read(tmp_path: Path, array: Any) -> None:
    (tmp_path / "a.npy").write_bytes(npy(array))
    np.savez(tmp_path / "a.npz", one=array, two=ARRAY)
    (tmp_path / "b.npz").write_bytes(npz(one=array))
    for found in (read_npy(tmp_path / "a.npy"), *(read_npz(tmp_path / name)["one"] for name in ("a.npz", "b.npz"))):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "header can't be read"),
        (b"hello, world", "header can't be read"),
        (npy()[:70], "header can't be read"),
        (npy()[:-1], "holds 239 bytes of numbers, and says 240"),
        (npy() + b"x", "holds 241 bytes"),
        (npz(a=ARRAY), "is an archive"),
        (shaped("(1000000000000,)"), "says 8000000000000"),
        (shaped("(1000000000000000000000000000000,)"), "holds 0 bytes"),
        (shaped("(-4,)"), "shape"),
        (shaped("(" + "1, " * 40 + ")", bytes(8)), "shape"),
        (shaped("('a',)"), "header can't be read"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (3,)"), "header can't be read"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': ('"), "header can't be read"),
        (header("[" * 5000), "header can't be read"),
        (header("{'descr': '" + "x" * 20000 + "'}"), "header can't be read"),
        (shaped("(1,)", bytes(8), "|O"), "it holds"),
        (shaped("(1,)", bytes(8), "<U2"), "it holds"),
        (shaped("(1,)", bytes(8), "<M8"), "it holds|header can't be read"),
        (b"\x93NUMPY\x09\x00" + npy()[8:], "header can't be read"),
    ],
)
def test_an_array_from_anybody(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=f"a.npy.*({problem})") as caught:
        read_npy(tmp_path / "a.npy")
    assert caught.value.fix


def encrypted(data: bytes) -> bytes:
    """The archive with the flags of its first member set, in its own header and in the table of contents."""
    changed = bytearray(data)
    changed[6] |= 1
    changed[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def method(data: bytes, number: int) -> bytes:
    changed = bytearray(data)
    changed[8] = changed[data.index(b"PK\x01\x02") + 10] = number
    return bytes(changed)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def other_member(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


GOOD = npz(tokens=np.arange(5000), more=ARRAY)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no archive"),
        (b"PK\x03\x04", "no archive"),
        (npy(), "a single array"),
        (GOOD[: len(GOOD) // 2], "no archive"),
        (GOOD[:-30], "no archive"),
        (encrypted(GOOD), "is encrypted"),
        (method(GOOD, 99), "method 99"),
        (method(GOOD, 12), "method 12"),
        (flipped(GOOD, 300), "damaged"),
        (other_member("a.txt", b"hello"), "is no array"),
        (other_member("a.npy", b"hello"), "header can't be read"),
        (other_member("a.npy", shaped("(1000000000000,)")), "says 8000000000000"),
        (other_member("a.npy", shaped("(" + "9" * 30 + ",)")), "holds 0 bytes"),
        (other_member("a.npy", npy()[:-1]), "holds 239 bytes"),
        (other_member("a.npy", npy() + b"x"), "holds 241 bytes"),
    ],
)
def test_an_archive_from_anybody(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=problem) as caught:
        read_npz(tmp_path / "a.npz")
    assert caught.value.where.startswith(str(tmp_path))
    assert caught.value.fix


@pytest.mark.parametrize("wrong_sum", [False, True])
def test_an_archive_that_unfolds_to_gigabytes(tmp_path: Path, *, wrong_sum: bool) -> None:
    """A checksum can't be told before the end; what is too large must be told before anything is unfolded."""
    head = shaped("(12500000,)")
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as member,
    ):
        member.write(head)
        for _ in range(100):
            member.write(bytes(1_000_000))
    if wrong_sum:
        data = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(flipped(data, data.index(b"PK\x01\x02") + 16))
    with pytest.raises(InputError, match="unfolds to 1000000"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("reader", [read_npy, read_npz])
def test_what_is_no_file(tmp_path: Path, reader: Callable[[Any], Any]) -> None:
    for path in (tmp_path, tmp_path / "absent", "/dev/zero"):
        with pytest.raises(InputError, match=r"regular file|No such file"):
            reader(path)
