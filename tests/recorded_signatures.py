"""Signatures of vendors' packages as ``python -m tools.signatures`` recorded them, and our calls held to them."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
from pathlib import Path
from typing import Any

from tools.signatures import RECORD, read_members

MEMBERS: dict[str, dict[str, str | None]] = {
    package: told["members"] for package, told in json.loads(RECORD.read_text(encoding="utf-8")).items()
}
"""By package and member: its parameters; ``None`` of a class's field."""


def recorded(package: str, member: str) -> inspect.Signature:
    """The signature of a package's function or method, without ``self``."""
    written = MEMBERS[package][member]
    assert written is not None
    made: dict[str, Any] = {}
    exec(f"def made({written}): ...", made)  # our own record, which a test compares with the package's source
    return inspect.signature(made["made"])


def shape(signature: inspect.Signature) -> list[tuple[str, Any, bool]]:
    """What a caller sees of it: names, kinds, and which may be left out."""
    every = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    return [(one.name, one.kind, one.default is not one.empty) for one in every]


def installed_members(package: str) -> dict[str, str | None] | None:
    """The same as the record, read from the package where it is installed."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return read_members(package, lambda file: Path(str(distribution.locate_file(file))).read_text(encoding="utf-8"))


def calls_bound(program: Path, package: str) -> set[str]:
    """Binds every call in a file that names a member of the package to its signature; the members that it calls.

    Raises:
        TypeError: The package would refuse a call.
    """
    members = {_called_as(member): member for member, written in MEMBERS[package].items() if written is not None}
    tree = ast.parse(program.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in members and not (isinstance(node.func, ast.Name) and name in own):
            words = {word.arg: None for word in node.keywords if word.arg is not None}
            recorded(package, members[name]).bind(*node.args, **words)
            found.add(members[name])
    return found


def _called_as(member: str) -> str:
    """``MLModel`` of ``MLModel.__init__``, ``predict`` of ``MLModel.predict``."""
    outer, _, inner = member.partition(".")
    return outer if inner in ("", "__init__") else inner
