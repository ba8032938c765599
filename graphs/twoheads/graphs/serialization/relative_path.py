"""The names of files in what others may have written: manifests, journals, indexes, caches."""

from __future__ import annotations

import os

__all__ = ["AbsolutePath", "RelativePath"]


class RelativePath(str):
    """The path of a file below a folder, with forward slashes: a text that can't name anything else.

    Not absolute, no ``..``, no empty part, no drive, no backslash, no control character, and a name in UTF-8, so that
    ``folder / path`` is below ``folder`` on every system, as long as no link leads out of it.

    Raises:
        ValueError: The text is none.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> RelativePath:
        """Takes ``text`` if it is such a path."""
        if not _is_plain(text):
            raise ValueError(f"{text!r} is not a plain path below its folder")
        return super().__new__(cls, text)

    @property
    def is_name(self) -> bool:
        """Whether it lies in the folder itself, not in a folder below."""
        return "/" not in self


class AbsolutePath(str):
    """The path of a file anywhere, of which a job remembers where it is: a text that names one on this system.

    A name that is no UTF-8 is one, spelled as Python does: with halves of surrogate pairs for its bytes.

    Raises:
        ValueError: The text is none.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> AbsolutePath:
        """Takes ``text`` if it is such a path."""
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            raise ValueError(f"{text!r:.200} is no path") from None
        if "\0" in text or not os.path.isabs(text):
            raise ValueError(f"{text!r:.200} is no absolute path")
        return super().__new__(cls, text)


def _is_plain(text: str) -> bool:
    if any(mark in text for mark in "\\:") or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return not any(part in ("", ".", "..") for part in text.split("/"))
