"""Keys, values and states of beginnings that were computed before: whole blocks, found by the tokens up to their end.

A block's name is a hash of the bundle, of what computes, and of all tokens from the first to its last. Only blocks that
``Context.append`` computed are kept, whose bits depend on nothing else: so a prefix that is found gives the very bits
that computing it again would.
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
"""The keys and values of all layers in one block, in the order of ``Steps.kept``, and the states behind it."""

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
        hits: Blocks that were found.
        misses: Blocks that were not.

    Raises:
        InputError: ``memory`` is negative, or ``folder`` is no folder.
    """

    def __init__(self, steps: Steps, identity: str, *, memory: int, folder: Path | None = None) -> None:
        if memory < 0:
            raise InputError("prefix cache", f"has {memory} bytes", "give 0 or more")
        self.hits = self.misses = 0
        rows = [(e.value.block_shape(steps.program.block_size), np.dtype(e.value.dtype)) for e in steps.kept]
        self._shapes = [*rows, *((port.shape, np.dtype(port.dtype)) for port in steps.states)]
        self._page_bytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._shapes)
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
    def nbytes(self) -> int:
        """Bytes of the pages in memory."""
        return len(self._pages) * self._page_bytes

    def find(self, name: bytes) -> Page | None:
        """The page of that name, not to be written to; ``None`` where there is none.

        Raises:
            InputError: Its file is damaged.
        """
        page = self._pages.get(name)
        if page is not None:
            self._pages.move_to_end(name)
        elif (page := self._read(name)) is not None:
            self._keep(name, page)
        self.hits, self.misses = self.hits + (page is not None), self.misses + (page is None)
        return page

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
        self._pages[name] = page
        self._pages.move_to_end(name)
        while self._pages and self.nbytes > self._memory:
            self._pages.popitem(last=False)

    def _path(self, name: bytes) -> Path | None:
        return None if self._folder is None else self._folder / f"{name.hex()}{PAGE}"

    def _read(self, name: bytes) -> Page | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        start = len(MAGIC) + DIGEST
        data = b""
        if path.is_file():  # a pipe would wait for whoever writes to it
            with path.open("rb") as file:
                data = file.read(start + self._page_bytes + 1)
        payload = data[start:]
        whole = data.startswith(MAGIC) and len(payload) == self._page_bytes
        if not whole or sha256(name + payload).digest() != data[len(MAGIC) : start]:
            raise InputError(str(path), "is damaged: it is not what was written", "delete it")
        page: Page = []
        at = 0
        for shape, dtype in self._shapes:
            count = int(np.prod(shape))
            page.append(np.frombuffer(payload, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
        return page


def following(name: bytes, tokens: Sequence[int]) -> bytes:
    """The name of the block of ``tokens`` behind the one called ``name``."""
    return sha256(name + np.asarray(tokens, "<i8").tobytes()).digest()
