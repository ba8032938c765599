"""What users name on the command line: files, folders, texts, tokens and positions, each refused with a clear error."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.graphs.serialization.bundle_format import MANIFEST
from twoheads.runtime.documents.source import LARGEST_DOCUMENT
from twoheads.runtime.inputs.array_files import read_npy
from twoheads.runtime.memory.new_file import output_place

__all__ = [
    "TextEncoder",
    "check_output_path",
    "check_outputs",
    "encode_text",
    "is_bundle",
    "parse_lengths",
    "parse_masks",
    "parse_positions",
    "parse_size",
    "read_text",
    "read_tokens",
    "refuse_bundles",
    "require_path",
    "unwritable",
]


class TextEncoder(Protocol):
    """The part of a bundle's tokenizer that turns text into tokens."""

    def encode(self, text: str) -> list[int]:
        """The token numbers of ``text``."""
        ...


def require_path(path: Path, what: str) -> Path:
    """``path``, which must exist.

    Raises:
        InputError: It does not; ``what`` says what was expected there.
    """
    try:
        found = path.exists()
    except OSError as error:
        raise InputError(str(path), f"can't be read: {error.strerror}") from None
    if not found:
        raise InputError(str(path), "no such file or folder", f"give the path of {what}")
    return path


def parse_masks(texts: Iterable[str] | None) -> dict[str, str]:
    """What masks of an ONNX file hold, from ``NAME=MASK`` texts.

    Raises:
        InputError: A text has another form.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, mask = text.partition("=")
        if not (name and equals and mask):
            raise InputError(f"--mask {text}", "is not NAME=MASK", "give e.g. --mask attention_mask=causal")
        found[name] = mask
    return found


def is_bundle(path: Path) -> bool:
    """Whether ``path`` is a bundle (a folder with a manifest), as opposed to a source model."""
    return (path / MANIFEST).is_file()


def check_output_path(path: Path, *, folder: bool = False, beside: Mapping[str, Path | None] | None = None) -> Path:
    """Where ``path`` is written, links followed; a result can probably be written there.

    Checked before work that takes minutes.

    Args:
        path: The file to be written, or the folder to be created.
        folder: Whether ``path`` is going to be a folder; a file may be replaced, but no folder by a file.
        beside: The command's other files by option: its inputs, and what else it writes.

    Raises:
        InputError: The folder around it is missing or not writable; or ``path`` is a folder or no regular file, lies in
            a bundle, or is one of the other files.
    """
    parent = Path(os.path.abspath(path)).parent
    if not parent.is_dir():
        problem = "no such folder" if not parent.exists() else "not a folder"
        raise InputError(
            str(path), f"can't be written: {parent}: {problem}", "create the folder, or name another place"
        )
    if not folder and path.is_dir():
        raise InputError(str(path), "is a folder, and the output is a file", "name a file in it")
    place = Path(os.path.realpath(path)) if folder else output_place(path)
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise InputError(str(path), f"can't be written: no permission to write in {place.parent}", "name another place")
    for option, other in (beside or {}).items():
        if other is not None and os.path.realpath(other) == str(place):
            raise InputError(str(path), f"is the file of {option}, too", "name another place")
    refuse_bundles(path, place.parents)
    return place


def refuse_bundles(path: Path, folders: Iterable[Path]) -> None:
    """Refuses to write ``path`` where one of ``folders`` is a bundle: with a file more it does not open again.

    Raises:
        InputError: One is.
    """
    for folder in folders:
        if is_bundle(folder):
            raise InputError(str(path), f"lies in the bundle {folder}, whose files are its own", "name another place")


def check_outputs(
    out: Path, report: Path | None, inputs: Mapping[str, Path | None], *, folder: bool = False
) -> dict[str, Any]:
    """Where ``--out`` and ``--report`` are written: neither over the other, nor over an input.

    Raises:
        InputError: As :func:`check_output_path`.
    """
    found: dict[str, Any] = {"out": check_output_path(out, folder=folder, beside=inputs)}
    if report is not None:
        found["report"] = check_output_path(report, beside={**inputs, "--out": out})
    return found


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: No such file, unreadable, not UTF-8 (with the offset), or empty.
    """
    try:
        with require_path(path, "a text file").open("rb") as file:
            data = file.read(LARGEST_DOCUMENT + 1)
    except OSError as error:
        raise InputError(str(path), f"can't be read: {error.strerror}", "give a text file in UTF-8") from None
    if len(data) > LARGEST_DOCUMENT:
        problem = f"is larger than {LARGEST_DOCUMENT >> 20} MiB, for which a tokenizer takes more than a gigabyte"
        raise InputError(str(path), problem, "cut it, or give token numbers with --tokens FILE.npy")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InputError(str(path), problem, "convert it, e.g. with: iconv -f latin1 -t utf-8") from None
    if not text.strip():
        raise InputError(str(path), "the text is empty", "give at least one word")
    return text


def read_tokens(path: Path) -> npt.NDArray[Any]:
    """The array of a ``.npy`` file with one sequence of token numbers, ``[N]`` or ``[1, N]``.

    Raises:
        InputError: No such file, not a ``.npy`` file, or another shape or type.
    """
    fix = "save them with numpy.save as an integer array of shape [N] or [1, N]"
    array = read_npy(require_path(path, "a .npy file"), fix)
    if array.dtype.kind not in "iu" or (array.ndim != 1 and (array.ndim != 2 or array.shape[0] != 1)):
        raise InputError(str(path), f"holds {array.dtype} of shape {list(array.shape)}, not token numbers", fix)
    return array


def encode_text(text: str, tokenizer: TextEncoder | None, *, source: Path, bundle: Path) -> npt.NDArray[np.int64]:
    """The tokens of ``text``, which was read from ``source``, by the tokenizer of ``bundle``.

    Raises:
        InputError: The bundle has no tokenizer, or the text gives no token.
    """
    if tokenizer is None:
        problem = "has no tokenizer, because its source had none"
        raise InputError(str(bundle), problem, "give token numbers with --tokens FILE.npy")
    tokens = np.asarray(tokenizer.encode(text), np.int64)
    if tokens.size == 0:
        raise InputError(str(source), "the text gives no tokens", "give at least one word")
    return tokens


def parse_lengths(text: str) -> int | dict[str, int]:
    """A length: ``1000``, or one for every axis, ``n=1000,m=300``.

    Raises:
        InputError: Neither of these.
    """
    fix = "give e.g. 1000, or n=1000,m=300"
    found = [re.fullmatch(r"(?:\s*([a-z]\w*)\s*=)?\s*(-?[0-9]{1,18})\s*", item) for item in text.split(",")]
    named = [match.group(1) for match in found if match is not None]
    if None in found or (None in named and len(named) > 1):
        raise InputError(f"--length {text[:60]}", "is neither a whole number nor one for every axis", fix)
    if len(set(named)) < len(named):
        raise InputError(f"--length {text[:60]}", "tells the length of an axis twice", fix)
    lengths = {match.group(1): int(match.group(2)) for match in found if match is not None}
    only = lengths.pop(None, None)
    return lengths if only is None else only


def parse_size(text: str) -> int:
    """Bytes: ``4GB``, ``1.5 GiB``, ``900MB``, or a plain number of bytes.

    Raises:
        InputError: Not a size, or none at all.
    """
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?:([kmgt])(i?)b?|b?)\s*", text, re.IGNORECASE)
    fix = "give e.g. 4GB, 1.5GiB or 900MB"
    if found is None:
        raise InputError(f"{text[:60]}", "is not a size of memory", fix)
    number, prefix, binary = found.groups()
    unit = 1 if prefix is None else (1024 if binary else 1000) ** (" kmgt".index(prefix.lower()))
    size = int(float(number) * unit)
    if size < 1:
        raise InputError(text, "is no memory at all", fix)
    return size


def parse_positions(text: str, length: int) -> npt.NDArray[np.int64]:
    """Positions of an input of ``length`` tokens, such as ``0,5,100:200,-1``, in the order given.

    Ranges are half-open as in Python; either end may be left out; negative numbers count from the end.

    Raises:
        InputError: Not such a list, a position outside of the input, or an empty range.
    """
    selected = [_positions_of(item.strip(), length) for item in text.split(",")]
    return np.concatenate(selected)


def _positions_of(item: str, length: int) -> npt.NDArray[np.int64]:
    where = f"--positions {item}"
    fix = "give numbers and ranges such as 0,5,100:200,-1"
    first, colon, last = item.partition(":")
    try:
        start = int(first) if first or not colon else 0
        stop = start + 1 if not colon else int(last) if last else length
    except ValueError:
        raise InputError(where, "not a position or a range of positions", fix) from None
    start += length if start < 0 else 0
    stop = start + 1 if not colon else stop + length if stop < 0 else stop
    if not (0 <= start < length and stop <= length):
        raise InputError(where, f"outside of the input, which has {length} tokens", fix)
    if stop <= start:
        raise InputError(where, "an empty range", fix)
    return np.arange(start, stop, dtype=np.int64)


def unwritable(path: Path, error: OSError) -> TwoheadsError:
    """The error of an output file that can't be written: the disk is full, no permission, and the like."""
    return TwoheadsError(
        str(path), f"can't be written: {error.strerror or error}", "free the space, or name another place"
    )
