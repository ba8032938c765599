"""From what the caller gives to what is run: padding left out, packed documents taken apart, batches split.

Attention over real tokens alone is attention with a padding mask, whatever the padding's side, so padding is never
computed. Documents that share a sequence never see each other, so each is an input of its own. Packing then
lets them share calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.axes import axis_inputs
from twoheads.graphs.program.lengths import check_limit, main_length, value_rows
from twoheads.graphs.program.program import Program
from twoheads.runtime.inputs.arrays import (
    check_output,
    complete_arrays,
    named_arrays,
    resolve_positions,
    shaped_arrays,
    split_batch,
    split_inputs,
)
from twoheads.runtime.reports.report import Result, merge_reports

__all__ = ["Given", "Inputs", "Request", "read_inputs"]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

MASK = "attention_mask"
DOCUMENTS = "documents"


@dataclass(frozen=True, slots=True)
class Request:
    """One input as it is run.

    Attributes:
        lengths: Tokens by input axis.
        length: The one that reports tell.
        arrays: An array for every input value, shaped as the value with these lengths.
        rows: Which rows of the hidden states or logits are wanted, ``None`` for all.
    """

    lengths: Mapping[str, int]
    length: int
    arrays: Mapping[str, Array]
    rows: Rows | None

    def digest(self) -> str:
        """The sha256 of the arrays and of the rows that are wanted."""
        digest = sha256()
        for name, array in sorted({**self.arrays, "": self.rows}.items()):
            digest.update(repr((name, None if array is None else (array.dtype.str, array.shape))).encode())
            if array is not None:
                digest.update(array.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Given:
    """One input as it was given.

    Attributes:
        requests: What is run for it: itself, its real tokens, or its documents.
        places: For every request, which rows of the result its rows are; empty where the one request's result is that
            of the input.
        rows: Rows of the result; 0 where an output of one row an input becomes one of a row a document.
    """

    requests: tuple[Request, ...]
    places: tuple[Rows, ...] = ()
    rows: int = 0

    def assemble(self, results: Sequence[Result]) -> Result:
        """The result for the input from those of its requests; rows of no request are 0."""
        arrays = [result.array for result in results if result.array is not None]
        if not self.places or len(arrays) != len(results):
            return results[0]
        if self.rows:
            array = np.zeros((self.rows, arrays[0].shape[-1]), np.float32)
            for place, part in zip(self.places, arrays, strict=True):
                array[place] = part
        else:
            array = np.stack([part.reshape(-1) for part in arrays])
        return Result(array, results[0].output, merge_reports([result.report for result in results]))


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a call was given, read and checked.

    Attributes:
        output: What is computed of each.
        given: The inputs.
        several: Whether the caller gave a list or a batch, and gets a list.
    """

    output: str
    given: tuple[Given, ...]
    several: bool

    @property
    def requests(self) -> list[Request]:
        """What is run for all of them, in order."""
        return [request for one in self.given for request in one.requests]

    @property
    def only(self) -> Request | None:
        """The one request whose rows are those of the one input, if that is all."""
        one = self.given[0]
        return None if self.several or one.places or len(one.requests) != 1 else one.requests[0]

    def assemble(self, results: Sequence[Result]) -> Result | list[Result]:
        """What the caller gets, from the results of :attr:`requests`."""
        computed = iter(results)
        assembled = [one.assemble([next(computed) for _ in one.requests]) for one in self.given]
        return assembled if self.several else assembled[0]


def read_inputs(
    program: Program,
    tokens: Any,
    *,
    output: str | None = None,
    positions: Any = None,
    sink: bool = False,
    attention_mask: Any = None,
    documents: Any = None,
) -> Inputs:
    """Reads and checks what a caller gives, once for all.

    Args:
        program: What runs.
        tokens: As :meth:`twoheads.runtime.LoadedBundle.run` takes it; likewise the others.
        output: What is computed.
        positions: Which rows of it.
        sink: Whether the rows go to one.
        attention_mask: Which tokens are real.
        documents: Which tokens belong together.

    Raises:
        InputError: Something is missing, empty, out of range, or does not fit the rest.
    """
    output = check_output(program, output, positions=positions is not None, sink=sink)
    items, several = split_inputs(tokens)
    masks = _masks(attention_mask, len(items), several=several)
    inputs = [_take_mask(program, item, mask) for item, mask in zip(items, masks, strict=True)]
    batch = None if several else split_batch(program, inputs[0][0])
    if batch is not None:
        inputs, several = list(zip(batch, _masks(inputs[0][1], len(batch), several=True), strict=True)), True
    if documents is not None and (several or inputs[0][1] is not None):
        with_what = f"{len(inputs)} inputs" if several else "an attention_mask"
        raise InputError(DOCUMENTS, f"can't be told for {with_what}", "give one sequence of documents, without padding")
    reader = _Reader(program, positions, rows=program.row_value(output) is not None)
    if documents is not None:
        given = [reader.documents(inputs[0][0], documents)]
    else:
        given = [reader.one(named, mask) for named, mask in inputs]
    if sink and (several or given[0].places):
        what = f"{len(inputs)} inputs" if several else "rows that are not computed, or several documents"
        raise InputError("sink", f"can't take {what}", "run them one by one")
    return Inputs(output, tuple(given), several)


def _take_mask(program: Program, given: Any, mask: Any) -> tuple[dict[str, Array], Any]:
    """The named arrays and the mask of an input, which may lie among them, as tokenizers give it.

    It does not where the program has an input of that name.
    """
    if isinstance(given, Mapping) and MASK in given and all(entry.value.name != MASK for entry in program.inputs):
        if mask is not None:
            raise InputError(MASK, "is given twice", "give it in the mapping or as an argument")
        named: dict[str, Any] = dict(given)  # pyright: ignore[reportUnknownArgumentType]
        given, mask = named, named.pop(MASK)
    return named_arrays(program, given), mask


def _masks(mask: Any, count: int, *, several: bool) -> list[Any]:
    """One mask, or ``None``, for every input."""
    if mask is None or not several:
        return [mask] * count
    rows: list[Any] = list(mask) if hasattr(mask, "__len__") else [mask]
    if len(rows) != count:
        raise InputError(MASK, f"has {len(rows)} rows for {count} inputs", "give one row of 0 and 1 for every input")
    return rows


class _Reader:
    """Reads single inputs.

    Args:
        program: What runs.
        positions: Rows that are wanted, as the caller gives them; ``None`` for all.
        rows: Whether the output has a row for every row of the hidden states.
    """

    def __init__(self, program: Program, positions: Any, *, rows: bool) -> None:
        self.program = program
        self.positions = positions
        self.rows = rows
        self.hidden = program.value(program.hidden)
        self.axis = _token_axis(program)

    def one(self, named: Mapping[str, Array], mask: Any) -> Given:
        """An input, of which ``mask`` hides the padding."""
        lengths, arrays = shaped_arrays(self.program, named)
        if mask is not None:
            kept = self._kept(mask, lengths)
            if len(kept) < lengths[self._axis(MASK)]:
                return self._masked(lengths, arrays, kept)
        return Given((self._request(lengths, arrays, self._wanted(lengths)),))

    def documents(self, named: Mapping[str, Array], documents: Any) -> Given:
        """Documents that lie one after the other in one input."""
        lengths, arrays = shaped_arrays(self.program, named)
        axis = self._axis(DOCUMENTS)
        if lengths.keys() != {axis} or (self.rows and self.hidden.axis != axis):
            problem = f"{self.program.name} has no single sequence with one row of output a token"
            raise InputError(DOCUMENTS, problem, "give a list with every document as an input of its own")
        ends = np.cumsum(_document_lengths(documents, lengths[axis]))
        wanted = self._wanted(lengths)
        requests: list[Request] = []
        places: list[Rows] = []
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            at = np.arange(start, stop)
            place = at if wanted is None else np.flatnonzero((wanted >= start) & (wanted < stop))
            if len(place):
                rows = None if wanted is None else wanted[place] - start
                requests.append(self._request({axis: int(stop - start)}, self._taken(arrays, axis, at), rows))
                places.append(place)
        count = lengths[axis] if wanted is None else len(wanted)
        return Given(tuple(requests), tuple(places), count if self.rows else 0)

    def _masked(self, lengths: dict[str, int], arrays: dict[str, Array], kept: Rows) -> Given:
        """The real tokens of an input, at the positions that they have in it."""
        axis = self._axis(MASK)
        self._check_mask(axis, kept)
        check_limit(self.program, lengths)  # the last position may be beyond a table that the real tokens would fit in
        placed = complete_arrays(self.program, lengths, arrays, sources=("positions",))
        real = {**lengths, axis: len(kept)}
        arrays = self._taken(placed, axis, kept)
        if self.hidden.axis != axis or not self.rows:
            return Given((self._request(real, arrays, self._wanted(real)),))
        wanted = self._wanted(lengths)
        if wanted is None:
            return Given((self._request(real, arrays, None),), (kept,), lengths[axis])
        at = np.searchsorted(kept, wanted)
        padding = wanted[kept[np.minimum(at, len(kept) - 1)] != wanted]
        if len(padding):
            raise InputError("positions", f"{padding[0]} is padding", "ask for real tokens, or for the output 'last'")
        return Given((self._request(real, arrays, at),))

    def _request(self, lengths: Mapping[str, int], arrays: Mapping[str, Array], rows: Rows | None) -> Request:
        length = main_length(self.program, lengths)
        return Request(lengths, length, complete_arrays(self.program, lengths, arrays), rows)

    def _wanted(self, lengths: Mapping[str, int]) -> Rows | None:
        return None if self.positions is None else resolve_positions(self.positions, value_rows(self.hidden, lengths))

    def _taken(self, arrays: Mapping[str, Array], axis: str, at: Rows) -> dict[str, Array]:
        """The rows ``at`` of every array on ``axis``."""
        values = {entry.value.name: entry.value for entry in self.program.inputs}
        return {
            name: array.take(at, values[name].token_axis) if values[name].axis == axis else array
            for name, array in arrays.items()
        }

    def _axis(self, argument: str) -> str:
        if self.axis is None:
            raise InputError(argument, f"{self.program.name} takes no sequence of tokens", "leave it out")
        return self.axis

    def _kept(self, mask: Any, lengths: Mapping[str, int]) -> Rows:
        """The positions of real tokens."""
        length = lengths[self._axis(MASK)]
        try:
            array = np.asarray(mask)
        except (TypeError, ValueError):
            array = np.zeros(0)
        flat = array[0] if array.ndim == 2 and len(array) == 1 else array
        fix = "give one number for every token: 1 for a real one, 0 for padding"
        if flat.shape != (length,):
            raise InputError(MASK, f"has shape {list(array.shape)}, the input has {length} tokens", fix)
        if flat.dtype.kind not in "biuf" or not np.isin(flat, (0, 1)).all():
            raise InputError(MASK, "holds more than 0 and 1", fix)
        kept = np.flatnonzero(flat)
        if not len(kept):
            raise InputError(MASK, "hides every token", fix)
        return kept

    def _check_mask(self, axis: str, kept: Rows) -> None:
        """Refuses what real tokens alone do not compute: rows that mix with padding, distances across holes."""
        for value in self.program.values():
            if value.axis not in (None, axis) and axis in axis_inputs(value.axis or ""):
                problem = f"hides tokens, and {self.program.name} makes {value.axis} rows of {axis} tokens"
                raise InputError(MASK, problem, "give the input without padding")
        if kept[-1] - kept[0] == len(kept) - 1:
            return
        fix = "leave the hidden tokens out of the input, or hide tokens at its ends only"
        for scan in self.program.scans:
            problem = f"hides tokens between others, and the state of {scan.name} changes with every token"
            raise InputError(MASK, problem, fix)
        values = {value.name: value for value in self.program.values()}
        for stage in self.program.attentions:
            if values[stage.key].axis != axis:
                continue
            if not Average.applies_to(stage.mask) or stage.bias is not None or stage.average is not None:
                why = "has a bias by distance" if stage.bias else f"sees {stage.mask}"
                problem = f"hides tokens between others, and {stage.name} counts distances: it {why}"
                raise InputError(MASK, problem, fix)


def _token_axis(program: Program) -> str | None:
    """The axis that a mask and documents speak of: that of ``input_ids``, else of the first argument on one."""
    named = [entry.value for entry in program.inputs if entry.source == "argument" and entry.value.axis is not None]
    first = next((value for value in named if value.name == "input_ids"), named[0] if named else None)
    return None if first is None or first.axis is None or first.axis.isdigit() else first.axis


def _document_lengths(documents: Any, length: int) -> Rows:
    """The lengths of documents that together have ``length`` tokens, from lengths or from one number a token."""
    fix = "give the documents' lengths, or for every token the number of its document: 0, 0, 0, 1, 1, ..."
    try:
        array = np.asarray(documents)
    except (TypeError, ValueError):
        array = np.zeros(0)
    array = array[0] if array.ndim == 2 and len(array) == 1 else array
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InputError(DOCUMENTS, f"are {array.dtype}{list(array.shape)}", fix)
    if len(array) == length:
        if length > 1 and (array == 1).all():
            raise InputError(DOCUMENTS, f"{length} times 1 is as many documents, or one", "number documents from 0")
        if (array[1:] < array[:-1]).any():
            raise InputError(DOCUMENTS, "have numbers that become smaller", fix)
        return np.unique(array, return_counts=True)[1].astype(np.int64)
    if int(array.min()) < 1 or int(array.max()) > length:
        odd = int(array[np.argmax((array < 1) | (array > length))])
        raise InputError(DOCUMENTS, f"hold the length {odd} in an input of {length} tokens", fix)
    if (together := sum(map(int, array))) != length:
        raise InputError(DOCUMENTS, f"have {together} tokens together, the input has {length}", fix)
    return array.astype(np.int64)
