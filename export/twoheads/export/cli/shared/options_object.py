"""Commands take their options as one frozen object; Typer gets a parameter for each of its fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

from typer.models import OptionInfo

from twoheads.export.cli.shared.conflicts import check_conflicts

__all__ = ["given_flags", "help_text", "takes_options"]


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a command of a function, some of whose parameters are frozen dataclasses of options.

    The fields are annotated as Typer's parameters are. A field may be such a dataclass itself. Options that do not go
    together, or that need others, are refused by the tables of :mod:`twoheads.export.cli.shared.conflicts`.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    objects: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if dataclasses.is_dataclass(kind):
            objects[parameter.name] = kind
            parameters += _parameters(kind)
        else:
            parameters.append(_parameter(parameter.name, kind, parameter.default))
    known = {flag for parameter in parameters for flag in _flags(parameter.annotation)}

    @functools.wraps(command)
    def parsed(**given: Any) -> None:
        built = {name: _build(kind, given) for name, kind in objects.items()}
        check_conflicts({flag for options in built.values() for flag in given_flags(options)}, known)
        command(**{name: given[name] for name in hints if name in given}, **built)

    del parsed.__wrapped__  # or Typer would look at the command's own parameters
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return parsed


def given_flags(options: Any) -> Iterator[str]:
    """The long names of the options, such as ``--text``, whose values are not the default."""
    hints = get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from given_flags(value)
        elif field.default is dataclasses.MISSING or value != field.default:
            yield from _flags(hints[field.name])


def _flags(kind: Any) -> Iterator[str]:
    for info in get_args(kind):
        if isinstance(info, OptionInfo):
            # In an annotation Typer keeps the first name where a default would be.
            names = (info.default, *(info.param_decls or ()))
            yield from (name for name in names if isinstance(name, str) and name.startswith("--"))


def _parameters(kind: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _parameters(hints[field.name])
        else:
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            yield _parameter(field.name, hints[field.name], default)


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _build(kind: Any, given: dict[str, Any]) -> Any:
    """The object of class ``kind`` from parsed parameters, which it takes out of ``given``."""
    hints = get_type_hints(kind, include_extras=True)
    values = {
        field.name: _build(hints[field.name], given)
        if dataclasses.is_dataclass(hints[field.name])
        else given.pop(field.name)
        for field in dataclasses.fields(kind)
    }
    return kind(**values)


def help_text(command: Callable[..., None]) -> str:
    """The command's docstring with a paragraph a line, for a terminal of any width; examples keep their lines."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(text if text.startswith("Example") else " ".join(text.split()) for text in paragraphs)
