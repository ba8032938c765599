"""The words of a block program's text, and what is said of one that is out of place."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from twoheads.graphs.errors import CompileError

__all__ = ["Token", "refuse", "statements"]

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(->|[%@:,()\[\]=<])|([A-Za-z0-9_.+-]+)|(\S))')


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a quoted string, a punctuation mark or the end of a statement, and its line, from 1."""

    kind: str
    text: str
    line: int


def refuse(token: Token, expected: str) -> NoReturn:
    """Says what was expected in the place of ``token``.

    Raises:
        CompileError: Always.
    """
    found = token.text if token.kind == "end" else repr(token.text)
    raise CompileError(f"program text, line {token.line}", f"expected {expected}, found {found}")


def statements(text: str) -> list[list[Token]]:
    """The tokens of each statement: an unindented line and the indented ones after it.

    Raises:
        CompileError: Something that is no token; names the line.
    """
    found: list[list[Token]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace() or not found:
            found.append([])
        found[-1] += _tokens(line, number)
    for statement in found:
        statement.append(Token("end", "the end of the line", statement[-1].line))
    return found


def _tokens(line: str, number: int) -> list[Token]:
    tokens: list[Token] = []
    for match in _TOKEN.finditer(line.rstrip()):
        quoted, mark, word, stray = match.groups()
        if stray is not None:
            refuse(Token("stray", stray, number), "a name, a number or punctuation")
        if quoted is not None:
            tokens.append(Token("quoted", _unquote(quoted, number), number))
        else:
            tokens.append(Token("mark", mark, number) if mark is not None else Token("word", word, number))
    return tokens


def _unquote(quoted: str, line: int) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        refuse(Token("quoted", quoted, line), "a string quoted as in JSON")
