"""Documents from a folder of texts or from JSON lines, one at a time, each read or with what is wrong with it."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import InputError

__all__ = ["SUFFIXES", "Document", "inspect_documents", "read_documents"]

SUFFIXES = (".txt", ".md")
"""Names of texts in a folder end so."""

LARGEST = 1 << 63

LARGEST_DOCUMENT = 1 << 25
"""Bytes of one text; a tokenizer takes about 40 times as much memory for it."""

TOO_LARGE = f"is larger than {LARGEST_DOCUMENT >> 20} MiB: cut it, or give its tokens to `twoheads run --tokens`"

PIECE = 1 << 20
"""Bytes that are read at a time where a line is only looked at."""

LINK = "is a link that leads out of the folder; --follow-links reads what it points to"


@dataclass(frozen=True, slots=True)
class Document:
    """One document; exactly one of ``text``, ``tokens`` and ``error`` is given.

    Attributes:
        name: The path within the folder, the line's own ``id``, or the line's number from 1.
        text: UTF-8 text.
        tokens: Token numbers, not checked against any model.
        error: Why it could not be read.
    """

    name: str | int
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    error: str | None = None


def read_documents(path: Path, *, follow_links: bool = False) -> Iterator[Document]:
    """The documents of a folder, by their path in it, or of a file of JSON lines, in order; blank lines are none.

    A line is an object with ``text`` or ``input_ids``, and ``id`` if it has one, which no other document has. A byte
    order mark in front of a text or of the first line is none of it. What a link that leads out of the folder points to
    is read if ``follow_links`` says so.

    Raises:
        InputError: There is no such folder or file.
    """
    if path.is_dir():
        for file in _texts(path):
            name = file.relative_to(path).as_posix()
            yield _from_file(file, name) if follow_links or not _leads_out(file, path) else Document(name, error=LINK)
        return
    seen = set[int]()
    with _opened(path) as lines:
        for number, line in enumerate(_lines(lines), 1):
            if line is None:
                yield Document(number, error=TOO_LARGE)
                continue
            found = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if found.strip():
                yield _once(_from_line(found, number), seen)


def inspect_documents(path: Path, *, follow_links: bool = False) -> tuple[int, str]:
    """How many documents there are, and the sha256 of their names and contents, of links out of a folder if followed.

    Raises:
        InputError: There is none, or a file can't be read.
    """
    digest = hashlib.sha256()
    count = 0
    if path.is_dir():
        for file in _texts(path):
            content = _digest(file) if follow_links or not _leads_out(file, path) else "link"
            digest.update(f"{content} {file.relative_to(path).as_posix()}\n".encode(errors="surrogateescape"))
            count += 1
    else:
        with _opened(path) as lines:
            blank = True
            while piece := lines.readline(PIECE):
                digest.update(piece)
                blank = blank and not piece.strip()
                if piece.endswith(b"\n") or len(piece) < PIECE:
                    count += not blank
                    blank = True
            count += not blank
    if not count:
        what = f"no files that end in {' or '.join(SUFFIXES)}" if path.is_dir() else "no lines"
        raise InputError(str(path), f"holds {what}", "give a folder of texts, or JSON lines with text or input_ids")
    return count, digest.hexdigest()


def _lines(opened: Any) -> Iterator[bytes | None]:
    """The lines of a file; ``None`` for one that is longer than any document, of which no more is held than that."""
    while line := opened.readline(LARGEST_DOCUMENT + 1):
        if len(line) <= LARGEST_DOCUMENT:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = opened.readline(PIECE)
        yield None


def _texts(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file()]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _leads_out(file: Path, folder: Path) -> bool:
    return not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def _once(document: Document, seen: set[int]) -> Document:
    """``document``, or what is wrong with it if an earlier one has its id; ``seen`` are the ids' hashes, 64 bits each.

    Results are found by id: of two with one, nobody could say which is which.
    """
    key = json.dumps(document.name).encode()
    digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())
    if digest in seen:
        return Document(document.name, error=f"has the id {document.name!r} of an earlier document")
    seen.add(digest)
    return document


def _digest(file: Path) -> str:
    with _opened(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        fix = "give a folder of .txt and .md files, or a file of JSON lines"
        raise InputError(str(path), f"can't be read: {error.strerror or error}", fix) from None


def _from_file(file: Path, name: str) -> Document:
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST_DOCUMENT + 1)
        if len(data) > LARGEST_DOCUMENT:
            return Document(name, error=TOO_LARGE)
        return _checked_text(name, data.decode("utf-8-sig"))
    except OSError as error:
        return Document(name, error=f"can't be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        return Document(name, error=f"is not UTF-8: {error.reason} at byte {error.start}")


def _from_line(line: bytes, number: int) -> Document:
    try:
        found: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Document(number, error=f"is not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Document(number, error=f"is not JSON: {error}")
    if not isinstance(found, dict):
        return Document(number, error="is no object with text or input_ids")
    fields: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType]
    name = fields.get("id", number)
    if not isinstance(name, str | int) or isinstance(name, bool):
        return Document(number, error="has an id that is neither text nor a whole number")
    text, tokens = fields.get("text"), fields.get("input_ids")
    if (text is None) == (tokens is None):
        return Document(name, error="has both text and input_ids" if text is not None else "has no text or input_ids")
    if tokens is None:
        return _checked_text(name, text) if isinstance(text, str) else Document(name, error="has text that is no text")
    if not isinstance(tokens, list) or not all(_is_token(token) for token in tokens):  # pyright: ignore[reportUnknownVariableType]
        return Document(name, error="has input_ids that are no list of whole numbers")
    return Document(name, tokens=tuple(tokens)) if tokens else Document(name, error="is empty")  # pyright: ignore[reportUnknownArgumentType]


def _is_token(token: Any) -> bool:
    return type(token) is int and -LARGEST <= token < LARGEST


def _checked_text(name: str | int, text: str) -> Document:
    if not text.strip():
        return Document(name, error="is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
        return Document(name, error=f"is not UTF-8: {error.reason} at character {error.start}")
    return Document(name, text=text)
