"""Keys, values and states of beginnings that were computed before: whole blocks, found by the tokens up to their end.

A block's name is a hash of the bundle, of what computes, and of all tokens from the first to its last. Only blocks that
``Context.append`` computed are kept, whose bits depend on nothing else: so a prefix that is found gives the very bits
that computing it again would. Behind the last whole block, *parts* of the open one are kept likewise, as many rows
as a call of ``append`` has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.memory.disk_space import disk_errors
from twoheads.runtime.memory.new_file import replacing, sweep_folder

__all__ = ["PrefixCache", "following"]

Page = list[npt.NDArray[Any]]
"""The keys and values of all layers in one block, in the order of ``Steps.kept``, and the states behind it.

Of a part the keys and values alone: models with states have none.
"""

MAGIC = b"twoheads page 1\n"
DIGEST = 32
PAGE = ".page"
"""What names of files end with."""
WRITING = Lock()
"""Held by the thread of this process that writes a page: two of them may have computed the same one."""


class PrefixCache:
    """Pages by name, in memory and, if there is a folder, on disk.

    Args:
        steps: What the pages are of.
        identity: Of bundle, backend and processor: pages of another one have other names.
        memory: Bytes of pages in memory; beyond them those that were asked for longest ago are let go.
        folder: Where pages are kept for other processes; created if need be.

    Attributes:
        hits: Whole blocks that were found.
        misses: Whole blocks that were not.
        nbytes: Bytes of the pages in memory.

    Raises:
        InputError: ``memory`` is negative, or ``folder`` is no folder.
    """

    def __init__(self, steps: Steps, identity: str, *, memory: int, folder: Path | None = None) -> None:
        if memory < 0:
            raise InputError("prefix cache", f"has {memory} bytes", "give 0 or more")
        self.hits = self.misses = self.nbytes = 0
        self._steps = steps
        self._first = sha256(identity.encode()).digest()
        self._memory, self._folder = memory, folder
        self._pages: OrderedDict[bytes, Page] = OrderedDict()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(str(folder), f"can't hold pages: {error.strerror}", "name a folder") from error
            sweep_folder(folder, PAGE)

    @property
    def first(self) -> bytes:
        """The name of the empty beginning."""
        return self._first

    @property
    def part(self) -> int:
        """Tokens of a part; 0 where there are none."""
        steps = self._steps
        return steps.rows[-2] if steps.by_runs and 1 < steps.rows[-2] < steps.program.block_size else 0

    def find(self, name: bytes) -> Page | None:
        """The page of that name, not to be written to; ``None`` where there is none.

        Raises:
            InputError: Its file is damaged.
        """
        page = self._find(name, self._steps.program.block_size)
        self.hits, self.misses = self.hits + (page is not None), self.misses + (page is None)
        return page

    def find_part(self, name: bytes) -> Page | None:
        """Likewise a part of a block.

        Raises:
            InputError: As there.
        """
        return self._find(name, self.part)

    def __contains__(self, name: bytes) -> bool:
        path = self._path(name)
        return name in self._pages or (path is not None and path.exists())

    def _find(self, name: bytes, rows: int) -> Page | None:
        page = self._pages.get(name)
        if page is not None:
            self._pages.move_to_end(name)
        elif (page := self._read(name, rows)) is not None:
            self._keep(name, page)
        return page

    def _shapes(self, rows: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and types of the arrays of a page of so many rows."""
        found = [(entry.value.block_shape(rows), np.dtype(entry.value.dtype)) for entry in self._steps.kept]
        return [*found, *((port.shape, np.dtype(port.dtype)) for port in self._steps.states)]

    def put(self, name: bytes, page: Page) -> None:
        """Keeps a page, which must not change any more.

        Raises:
            TwoheadsError: The disk refuses.
        """
        self._keep(name, page)
        path = self._path(name)
        if path is None or path.exists():
            return
        payload = b"".join(array.tobytes() for array in page)
        with WRITING, disk_errors(path, "can't be written", "free disk space, or name another folder"):
            if not path.exists():
                with replacing(path) as file:
                    file.write(MAGIC + sha256(name + payload).digest() + payload)

    def _keep(self, name: bytes, page: Page) -> None:
        self.nbytes += _bytes(page) - _bytes(self._pages.get(name, []))
        self._pages[name] = page
        self._pages.move_to_end(name)
        while self._pages and self.nbytes > self._memory:
            self.nbytes -= _bytes(self._pages.popitem(last=False)[1])

    def _path(self, name: bytes) -> Path | None:
        return None if self._folder is None else self._folder / f"{name.hex()}{PAGE}"

    def _read(self, name: bytes, rows: int) -> Page | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        shapes, start = self._shapes(rows), len(MAGIC) + DIGEST
        size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes)
        data = b""
        if path.is_file():  # a pipe would wait for whoever writes to it
            with path.open("rb") as file:
                data = file.read(start + size + 1)
        payload = data[start:]
        whole = data.startswith(MAGIC) and len(payload) == size
        if not whole or sha256(name + payload).digest() != data[len(MAGIC) : start]:
            raise InputError(str(path), "is damaged: it is not what was written", "delete it")
        page: Page = []
        at = 0
        for shape, dtype in shapes:
            count = int(np.prod(shape))
            page.append(np.frombuffer(payload, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
        return page


def _bytes(page: Page) -> int:
    return sum(array.nbytes for array in page)


def following(name: bytes, tokens: Sequence[int]) -> bytes:
    """The name of the block of ``tokens`` behind the one called ``name``."""
    return sha256(name + np.asarray(tokens, "<i8").tobytes()).digest()
