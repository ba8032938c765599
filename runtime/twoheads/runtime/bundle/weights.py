"""The weights of a bundle as read-only views of one memory-mapped file."""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError
from twoheads.graphs.serialization.bundle_format import WeightEntry
from twoheads.runtime.bundle.inside import RECOMPILE
from twoheads.runtime.bundle.token_table import TokenTable

__all__ = ["Weights", "part_name"]


LARGE_BYTES = 1 << 16
"""Smaller weights stay: kernels read norms and biases where they lie."""

CHUNK = 16 << 20
"""Bytes that are hashed at a time."""

HASHERS = 2
"""Weights that are hashed at a time: a chunk of each is in memory."""

OFTEN_SECONDS = 0.02
"""Between two times that pages are let go while they are read: some 20 MB."""


def part_name(name: str, number: int) -> str:
    """What the hash of one expert's part of a weight is called."""
    return f"{name}[{number}]"


def _part_bytes(entry: WeightEntry) -> int:
    return prod(entry.shape[1:]) * np.dtype(entry.dtype).itemsize


class Weights:
    """Named views ``[*shape]`` of ``engines/weights.bin``; nothing is read until it is used.

    Args:
        path: The file.
        entries: Where each weight lies; checked against the file's size by the bundle reader.
        hashes: The hex sha256 of each weight, to be compared when it is asked for first; ``None`` where the file is
            known to be what was written.
    """

    def __init__(self, path: Path, entries: dict[str, WeightEntry], hashes: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._entries = entries
        self._unchecked = dict(hashes or {})
        self._parts = frozenset(self._unchecked)
        self._tables: dict[str, TokenTable] = {}
        self._map: mmap.mmap | None = None
        self._data: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._data = np.frombuffer(self._map, np.uint8)

    def view(self, name: str) -> npt.NDArray[Any]:
        """The weight called ``name``, read-only.

        Raises:
            BundleError: Its sha256 is not the one that was written.
        """
        entry = self._entries[name]
        if part_name(name, 0) in self._parts:
            for number in range(entry.shape[0]):
                self.part(name, number)
        return self._checked(name, entry)

    def _checked(self, name: str, entry: WeightEntry) -> npt.NDArray[Any]:
        dtype = np.dtype(entry.dtype)
        size = prod(entry.shape) * dtype.itemsize
        found = self._data[entry.offset : entry.offset + size]
        if (expected := self._unchecked.get(name)) is not None:
            if self._hash(entry.offset, size) != expected:
                raise BundleError(str(self._path), f"is altered: its weight {name} has another sha256", RECOMPILE)
            self._unchecked.pop(name, None)  # another thread may have been as quick
        return found.view(dtype).reshape(entry.shape)

    def _hash(self, offset: int, size: int) -> str:
        """The hex sha256 of bytes of the file, none of which stays in this process's memory behind it."""
        digest = hashlib.sha256()
        for start in range(offset, offset + size, CHUNK):
            stop = min(start + CHUNK, offset + size)
            digest.update(self._data[start:stop].data)
            self._advise_bytes(start, stop, "MADV_DONTNEED")
        return digest.hexdigest()

    def part(self, name: str, number: int) -> npt.NDArray[Any]:
        """Entry ``number`` along the first dimension of the weight ``name``, read-only; no other is read.

        Raises:
            BundleError: The sha256 of what was read is not the one that was written.
        """
        entry = self._entries[name]
        if name in self._unchecked:  # one hash of all, from a writer that did not know of parts
            one: npt.NDArray[Any] = self.view(name)[number]
            return one
        part = WeightEntry(entry.offset + number * _part_bytes(entry), entry.dtype, entry.shape[1:])
        return self._checked(part_name(name, number), part)

    def table(self, name: str) -> TokenTable:
        """The weight ``name`` as a table of which rows are fetched before they are read; the same one each time.

        Raises:
            BundleError: As :meth:`view`.
        """
        found = self._tables.get(name)
        if found is None:
            view, entry = self.view(name), self._entries[name]
            found = self._tables.setdefault(name, TokenTable(self._path, entry.offset, view.dtype, entry.shape))
        return found

    def check(self, names: Iterable[str]) -> None:
        """Compares the hashes of those among ``names`` that were not given out yet, some at the same time.

        One is read while another is hashed: either alone takes as long as computing with it.

        Raises:
            BundleError: As :meth:`view`.
        """
        left = [name for name in dict.fromkeys(names) if name in self._unchecked]
        left.sort(key=lambda name: -prod(self._entries[name].shape))
        if len(left) > 1:
            with ThreadPoolExecutor(HASHERS, thread_name_prefix="twoheads-weights") as pool:
                for _ in pool.map(self.view, left):
                    pass

    def views(self, names: Iterable[str]) -> tuple[npt.NDArray[Any], ...]:
        """The weights ``names``, in that order."""
        return tuple(self.view(name) for name in names)

    def read_ahead(self, names: Iterable[str]) -> None:
        """Has the system read the pages of the large ones among ``names``, while something else computes."""
        self._advise(names, "MADV_WILLNEED")

    def let_go(self, names: Iterable[str]) -> None:
        """Lets the pages of the large ones among the weights ``names`` go, as far as the system knows how to.

        A backend that has packed a weight never reads it again; without this the process would hold it twice. It is
        safe at any moment: whoever does read the pages again gets them from the page cache.
        """
        wanted = tuple(names)
        self._advise(wanted, "MADV_DONTNEED")
        for name in self._tables.keys() & set(wanted):
            self._tables[name].let_go()

    @contextmanager
    def letting_go(self, names: Collection[str]) -> Generator[None]:
        """The same while the block runs, and behind it: whoever reads many weights once never holds them all."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(OFTEN_SECONDS):
                self.let_go(names)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            yield
        finally:
            ended.set()
            worker.join()
            self.let_go(names)

    def let_go_part(self, names: Iterable[str], first: int, count: int = 1) -> None:
        """The same of ``count`` entries of each along its first dimension, from ``first`` on."""
        self._advise(names, "MADV_DONTNEED", first, count)

    def _advise(self, names: Iterable[str], advice: str, first: int = 0, count: int | None = None) -> None:
        for name in names:
            entry = self._entries.get(name)
            if entry is None:  # an artifact holds it
                continue
            rows = 1 if not entry.shape else entry.shape[0] - first if count is None else count
            start, size = entry.offset + first * _part_bytes(entry), rows * _part_bytes(entry)
            self._advise_bytes(start, start + size, advice)

    def _advise_bytes(self, start: int, stop: int, advice: str) -> None:
        """Of the whole pages among these bytes, where they are many."""
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (stop - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and whole >= LARGE_BYTES and hasattr(mmap, advice):
            self._map.madvise(getattr(mmap, advice), start, whole)
