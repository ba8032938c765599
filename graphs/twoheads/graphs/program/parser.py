"""The parser of a block program's text, whose form :mod:`twoheads.graphs.program.printer` describes.

Recursive descent over the tokens of one statement at a time; every refusal names the line and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.lexer import Token, refuse, statements
from twoheads.graphs.program.program import (
    AttentionStage,
    Dim,
    Engine,
    ExpertsStage,
    Input,
    Limit,
    Pooling,
    Port,
    Program,
    RelativeBias,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.program.text_form import ENGINE_FORMS, WHOLE, engine_defaults, engine_fields

__all__ = ["parse_program"]

T = TypeVar("T")


def parse_program(text: str) -> Program:
    """Reads what ``print_program`` wrote.

    Raises:
        CompileError: The text is not a program; names the line, what was expected and what was found.
    """
    parts = _Parts()
    for tokens in statements(text):
        _Statement(tokens).read(parts)
    end = Token("end", "the end of the text", text.count("\n") + 1)
    for keyword in ("program", "hidden"):
        if keyword not in parts.single:
            refuse(end, "a line 'program ...'" if keyword == "program" else "a line 'output hidden = ...'")
    single = parts.single
    return Program(
        name=single["program"][0],
        block_size=single["program"][1],
        key_tile=single["program"][2],
        inputs=tuple(parts.inputs),
        engines=tuple(parts.engines),
        body=tuple(parts.body),
        head=tuple(parts.head),
        hidden=single["hidden"],
        logits=single.get("logits"),
        pooling=single.get("pooling"),
        max_length=single.get("max_length"),
        trained_length=single.get("trained_length"),
        other_limits=tuple(parts.limits),
    )


@dataclass(slots=True)
class _Parts:
    """What the statements read so far declare."""

    inputs: list[Input] = field(default_factory=list[Input])
    engines: list[Engine] = field(default_factory=list[Engine])
    body: list[Stage] = field(default_factory=list[Stage])
    head: list[TokenwiseStage] = field(default_factory=list[TokenwiseStage])
    limits: list[Limit] = field(default_factory=list[Limit])
    single: dict[str, Any] = field(default_factory=dict[str, Any])


class _Statement:
    """Reads one statement's tokens from left to right."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    def read(self, parts: _Parts) -> None:
        """Adds what the statement declares to ``parts``."""
        start = self.tokens[0]
        readers: dict[str, Callable[[_Parts], None]] = {
            "program": self.program,
            "max_length": lambda parts: self.once(parts, "max_length", Limit(self.whole(), self.string())),
            "axis_limit": lambda parts: parts.limits.append(self.axis_limit()),
            "trained_length": lambda parts: self.once(parts, "trained_length", self.whole()),
            "input": lambda parts: parts.inputs.append(self.input()),
            "engine": lambda parts: parts.engines.append(self.engine()),
            "stage": lambda parts: parts.body.append(self.stage()),
            "head": self.head,
            "output": self.output,
            "pooling": lambda parts: self.once(parts, "pooling", Pooling(self.name(), self.takes("normalize"))),
        }
        reader = readers.get(start.text) if start.kind == "word" else None
        if reader is None:
            refuse(start, f"one of {', '.join(readers)}")
        self.at = 1
        reader(parts)
        if self.token.kind != "end":
            refuse(self.token, "the end of the line")

    def axis_limit(self) -> Limit:
        axis = self.name("an input axis")
        return Limit(self.whole(), self.string(), axis)

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def comes(self, text: str) -> bool:
        """Whether a mark or word comes next."""
        return self.token.kind in ("mark", "word") and self.token.text == text

    def takes(self, text: str) -> bool:
        """Skips a mark or word if it comes next; whether it did."""
        found = self.comes(text)
        self.at += found
        return found

    def expect(self, text: str) -> None:
        if not self.takes(text):
            refuse(self.token, repr(text))

    def name(self, expected: str = "a name") -> str:
        token = self.token
        if token.kind not in ("word", "quoted"):
            refuse(token, expected)
        self.at += 1
        return token.text

    def string(self) -> str:
        if self.token.kind != "quoted":
            refuse(self.token, "a quoted string")
        return self.name()

    def number(self, kind: Callable[[str], T], expected: str) -> T:  # noqa: RET503 - refuse never returns
        token = self.token
        try:
            if token.kind == "word":
                self.at += 1
                return kind(token.text)
        except ValueError:
            pass
        refuse(token, expected)

    def whole(self) -> int:
        return self.number(_whole, "a whole number")

    def entry(self, key: str, read: Callable[[], T]) -> T:
        """``key=value``."""
        self.expect(key)
        self.expect("=")
        return read()

    def listed(self, read: Callable[[], T]) -> tuple[T, ...]:
        """One or more items between commas."""
        items = [read()]
        while self.takes(","):
            items.append(read())
        return tuple(items)

    def bracketed(self, read: Callable[[], T], marks: str = "()") -> tuple[T, ...]:
        self.expect(marks[0])
        if self.takes(marks[1]):
            return ()
        items = self.listed(read)
        self.expect(marks[1])
        return items

    def reference(self) -> str:
        self.expect("%")
        return self.name()

    def dim(self) -> Dim:
        is_number = self.token.kind == "word" and WHOLE.fullmatch(self.token.text)
        return self.whole() if is_number else self.name("a dimension")

    def value(self) -> Value:
        name = self.reference()
        self.expect(":")
        return Value(name, self.name("a dtype"), self.bracketed(self.dim, "[]"))

    def port(self) -> Port:
        name = self.name()
        self.expect(":")
        return Port(name, self.name("a dtype"), self.bracketed(self.whole, "[]"))

    def once(self, parts: _Parts, key: str, value: Any) -> None:
        if key in parts.single:
            refuse(self.tokens[0], f"no second {key}")
        parts.single[key] = value

    def program(self, parts: _Parts) -> None:
        self.once(parts, "program", (self.name(), *(self.entry(key, self.whole) for key in ("block_size", "key_tile"))))

    def input(self) -> Input:
        value = self.value()
        self.expect("=")
        source, axis = self.name("a source"), None
        if self.takes("("):
            axis = self.name("an axis")
            self.expect(")")
        return Input(value, source, self.whole() if self.takes("<") else None, axis)

    def output(self, parts: _Parts) -> None:
        kind = next((kind for kind in ("hidden", "logits") if self.takes(kind)), None)
        if kind is None:
            refuse(self.token, "hidden or logits")
        self.expect("=")
        self.once(parts, kind, self.reference())

    def engine(self) -> Engine:
        self.expect("@")
        name = self.name()
        self.expect(":")
        for word, form in ENGINE_FORMS.items():
            if self.takes(word):
                readers: dict[Any, Callable[[], Any]] = {
                    int: self.whole,
                    float: lambda: self.number(float, "a number"),
                    str: self.name,
                    tuple[tuple[str, int], ...]: lambda: self.bracketed(lambda: (self.name(), self.entry_value())),
                }
                usual = engine_defaults(form)
                fields = [item for item in engine_fields(form).items() if item[0] not in usual]
                values = {key: self.entry(key, readers[kind]) for key, kind in fields}
                more = [item for item in engine_fields(form).items() if item[0] in usual]
                values |= {key: self.entry(key, readers[kind]) for key, kind in more if self.token.text == key}
                return form(name, **values)
        inputs = self.bracketed(self.port)
        self.expect("->")
        outputs = self.bracketed(self.port)
        flops = self.entry("flops", self.whole)
        return TokenwiseEngine(name, inputs, outputs, self.listed(self.port) if self.takes("weights") else (), flops)

    def stage(self) -> Stage:
        name = self.name()
        self.expect(":")
        outputs = () if self.takes("=") else self.listed(self.value)
        if outputs:
            self.expect("=")
        if not self.takes("@"):
            return self.sequence(name, outputs)
        engine, reads = self.name(), self.bracketed(self.reference)
        for word, read in self.calls.items():
            if self.takes(word):
                return read(name, engine, reads, outputs)
        return TokenwiseStage(name, engine, reads, outputs, self.listed(self.name) if self.takes("weights") else ())

    @property
    def calls(self) -> dict[str, Callable[[str, str, tuple[str, ...], tuple[Value, ...]], Stage]]:
        """Kinds of stages by the word behind their operands; without one it is token-wise."""
        return {"mask": self.attention, "scan": self.scan, "experts": self.experts}

    def scan(self, name: str, engine: str, reads: tuple[str, ...], outputs: tuple[Value, ...]) -> ScanStage:
        if len(outputs) != 1:
            refuse(self.token, "one output for a scan")
        return ScanStage(name, engine, reads, outputs[0], self.bracketed(self.name))

    def experts(self, name: str, engine: str, reads: tuple[str, ...], outputs: tuple[Value, ...]) -> ExpertsStage:
        if len(reads) != 3 or len(outputs) != 1:
            refuse(self.token, "rows, chosen experts and their shares, and one output, for a stage of experts")
        return ExpertsStage(name, engine, *reads, outputs[0], self.bracketed(self.name))

    def sequence(self, name: str, outputs: tuple[Value, ...]) -> SequenceStage:
        if len(outputs) != 1:
            refuse(self.token, "'@' and an engine, or one output and an operator")
        operator, reads = self.name("'@' and an engine, or an operator"), self.bracketed(self.reference)
        attributes: list[tuple[str, int]] = []
        while self.token.kind != "end":
            key = self.name("an attribute")
            self.expect("=")
            attributes.append((key, self.whole()))
        return SequenceStage(name, operator, reads, outputs[0], tuple(attributes))

    def attention(self, name: str, engine: str, reads: tuple[str, ...], outputs: tuple[Value, ...]) -> AttentionStage:
        if len(reads) != 3 or len(outputs) != 1:
            refuse(self.token, "a query, a key and a value, and one output, for a stage with a mask")
        self.expect("=")
        token, text = self.token, self.string()
        try:
            mask = parse_mask(text)
        except CompileError as error:
            raise CompileError(
                f"program text, line {token.line}", f"{error.where} {error.problem}", error.fix
            ) from None
        sinks = self.entry("sinks", self.name) if self.comes("sinks") else None
        bias = None
        if self.takes("bias"):
            parts = dict(self.bracketed(self.bias_part))
            bias = RelativeBias(parts.get("table"), parts.get("slope"))
        average = self.average() if self.takes("average") else None
        return AttentionStage(name, engine, *reads, outputs[0], mask, sinks, bias, average)

    def average(self) -> Average:
        start = self.token
        numbers = dict(self.bracketed(lambda: (self.name(), self.entry_value())))
        if not {"samples", "sinks", "seed"} <= numbers.keys() <= {"samples", "window", "sinks", "seed"}:
            refuse(start, "(samples=..., sinks=..., seed=...), with a window or without")
        return Average(numbers["samples"], numbers.get("window"), numbers["sinks"], numbers["seed"])

    def entry_value(self) -> int:
        self.expect("=")
        return self.whole()

    def bias_part(self) -> tuple[str, str]:
        key = "table" if self.comes("table") else "slope"
        return key, self.entry(key, self.name)

    def head(self, parts: _Parts) -> None:
        stage = self.stage()
        if not isinstance(stage, TokenwiseStage):
            what = "operator on whole values" if stage.on_host else stage.kind
            refuse(self.tokens[0], f"no {what} in the head")
        parts.head.append(stage)


def _whole(text: str) -> int:
    if not WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)
