"""Frozen dataclasses to JSON-ready dictionaries and back, with every type checked on the way in.

Handles what the project's data is made of: ``str`` and kinds of it that refuse some texts, ``int``, ``float``,
``bool``, ``None``, enums by value, masks as text, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]``, optional values
and unions of dataclasses (told apart by a ``kind`` entry). What is ``Any`` is left to its reader.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Mask, parse_mask

__all__ = ["FormatError", "finite_numbers", "from_json", "to_json"]

T = TypeVar("T")


class FormatError(ValueError):
    """Data that does not fit the dataclass it is read into; the message says where and why."""


def to_json(value: Any) -> Any:
    """Converts a dataclass tree to dictionaries, lists and scalars; field order is kept, ``kind`` names the class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mask):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, Mask):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, tuple):
        return [to_json(item) for item in cast("Iterable[Any]", value)]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in cast("dict[str, Any]", value).items()}
    return value


def finite_numbers(data: Any) -> Any:
    """What :func:`to_json` gave with null for the numbers that JSON can't express: infinity and not-a-number."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): finite_numbers(item) for key, item in cast("dict[str, Any]", data).items()}
    if isinstance(data, list | tuple):
        return [finite_numbers(item) for item in cast("Iterable[Any]", data)]
    return data


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Reads what :func:`to_json` wrote as an instance of ``cls``.

    Raises:
        FormatError: A key is missing or unknown, or a value has the wrong type; names the path to it.
    """
    return cast("T", _read(cls, data, where or cls.__name__))


def _read(annotation: Any, data: Any, where: str) -> Any:
    origin = get_origin(annotation)
    if annotation is Any:
        return data
    if origin in (Union, types.UnionType):
        return _read_union(get_args(annotation), data, where)
    if origin is tuple:
        return _read_tuple(get_args(annotation), _expect(list, data, where), where)
    if origin is dict:
        names, items = get_args(annotation)
        entries = cast("dict[str, Any]", _expect(dict, data, where))
        return {_read(names, key, where): _read(items, item, f"{where}.{key}") for key, item in entries.items()}
    if dataclasses.is_dataclass(annotation):
        return _read_dataclass(cast("type[Any]", annotation), data, where)
    if annotation is Mask:
        return _read_mask(_expect(str, data, where), where)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        try:
            return annotation(data)
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from None
    if isinstance(annotation, type) and issubclass(annotation, str) and annotation is not str:
        return _read_text(annotation, _expect(str, data, where), where)
    if annotation is float and type(data) is int:
        return float(data)
    return _expect(annotation, data, where)


def _read_tuple(kinds: tuple[Any, ...], items: list[Any], where: str) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        raise FormatError(f"{where}: expected {len(kinds)} entries, got {len(items)}")
    pairs = zip(kinds, items, strict=True)
    return tuple(_read(kind, item, f"{where}[{at}]") for at, (kind, item) in enumerate(pairs))


def _read_mask(text: str, where: str) -> Mask:
    try:
        return parse_mask(text)
    except CompileError as error:
        raise FormatError(f"{where}: {error.where} {error.problem}") from None


def _read_text(kind: type[str], text: str, where: str) -> str:
    """A text that only some can be, such as a path below a folder."""
    try:
        return kind(text)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from None


def _expect(kind: Any, data: Any, where: str) -> Any:
    fits = data is None if kind in (None, types.NoneType) else type(data) is kind
    if not fits:
        raise FormatError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(data).__name__}")
    return data


def _read_union(options: tuple[Any, ...], data: Any, where: str) -> Any:
    found = type(data).__name__
    if data is None and types.NoneType in options:
        return None
    if isinstance(data, dict) and "kind" in data:
        entries = cast("Mapping[str, Any]", data)
        for option in options:
            if getattr(option, "__name__", "") == entries["kind"]:
                return _read(option, entries, where)
        raise FormatError(f"{where}: unknown kind {entries['kind']!r}")
    for option in options:
        if option is not types.NoneType and (type(data) is option or not isinstance(option, type)):
            return _read(option, data, where)
    plain = [option for option in options if option is not types.NoneType]
    if len(plain) == 1:
        return _read(plain[0], data, where)
    names = [getattr(option, "__name__", option) for option in options]
    raise FormatError(f"{where}: {found} fits none of {names}")


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


def _read_dataclass(cls: type[Any], data: Any, where: str) -> Any:
    entries = cast("dict[str, Any]", dict(_expect(dict, data, where)))
    kind = entries.pop("kind", cls.__name__)
    if kind != cls.__name__:
        raise FormatError(f"{where}: expected {cls.__name__}, got {kind!r}")
    hints = _hints(cast("Hashable", cls))
    if unknown := sorted(entries.keys() - hints.keys()):
        raise FormatError(f"{where}: unknown entry {unknown[0]!r}")
    if missing := sorted(hints.keys() - entries.keys()):
        raise FormatError(f"{where}: missing entry {missing[0]!r}")
    return cls(**{name: _read(hints[name], entries[name], f"{where}.{name}") for name in hints})
