"""The program's text: pinned by a golden file, read back without loss, refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.graphs.sample_programs import classifier, decoder, encoder, hybrid, programs
from tests.tiers import cases
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.parser import parse_program
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import Program

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"


def _two_layers() -> Program:
    return decoder(parse_mask("causal"), parse_mask("causal & (window(31, 0) | sinks(4))"), key_tile=32, sinks=True)


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("decoder.program", _two_layers()),
        ("encoder.program", encoder()),
        ("classifier.program", classifier()),
        ("hybrid.program", hybrid()),
    ],
    ids=["decoder", "encoder", "classifier", "hybrid"],
)
def test_text_is_the_golden_one(name: str, program: Program) -> None:
    golden = (GOLDEN / name).read_text(encoding="utf-8")
    assert print_program(program) == golden
    assert parse_program(golden) == program


@pytest.mark.repeated
@settings(max_examples=cases(100, 300), deadline=None)
@given(programs)
def test_text_round_trip(program: Program) -> None:
    text = print_program(program)
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text


def test_comments_blank_lines_and_windows_line_ends_are_allowed() -> None:
    text = print_program(_two_layers())
    commented = "# a tiny model\r\n\r\n" + text.replace("\n", "\r\n    # why not\r\n")
    assert parse_program(commented) == _two_layers()


def test_floats_are_exact() -> None:
    program = decoder()
    assert parse_program(print_program(program)).engines[-1] == program.engines[-1]
    assert f"scale={8**-0.5!r}" in print_program(program)


@pytest.mark.parametrize(
    ("line", "wrong", "message"),
    [
        (1, "program tiny block_size=x key_tile=16", "expected a whole number, found 'x'"),
        (1, "program tiny key_tile=16", "expected 'block_size', found 'key_tile'"),
        (1, "model tiny", "expected one of program, max_length"),
        (2, "trained_length", "expected a whole number, found the end of the line"),
        (3, "input input_ids: int64[1, n] = argument", "expected '%', found 'input_ids'"),
        (3, "input %input_ids: int64[1, n = argument", "expected ']', found '='"),
        (3, "input %input_ids: int64[1, n] = argument < many", "expected a whole number, found 'many'"),
        (3, "input %input_ids: int64[1, n] = argument 5", "expected the end of the line, found '5'"),
        (3, 'input %"input_ids: int64[1, n] = argument', "expected a name, a number or punctuation, found '\"'"),
        (3, 'input %"\\q": int64[1, n] = argument', "expected a string quoted as in JSON"),
        (3, "input %a: int64[1, n] = argument ; more", "expected a name, a number or punctuation, found ';'"),
        (5, "engine @first: (x: int64[1, n]) -> () flops=1", "expected a whole number, found 'n'"),
        (5, "engine @first: (x: int64[1, 4]) flops=1", "expected '->', found 'flops'"),
        (13, 'stage s: %a: float32[1, n] = @e(%a, %b) mask="causal"', "expected a query, a key and a value"),
        (13, 'stage s: %a: float32[1, n] = @e(%a, %b, %c) mask="band"', "is not a mask expression"),
        (13, "stage s: %a: float32[1, n] = @e(%a, %b, %c) mask=causal", "expected a quoted string, found 'causal'"),
        (13, 'stage s: %a: f[1, n] = @e(%a, %b, %c) mask="full" bias(shape=w)', "expected 'slope', found 'shape'"),
        (13, 'head s: %a: float32[1, n] = @e(%a, %b, %c) mask="causal"', "expected no attention in the head"),
        (
            13,
            "stage s: %a: float32[1, n], %b: float32[1] = take(%x)",
            "expected '@' and an engine, or one output and an",
        ),
        (13, "stage s: %a: float32[1, n] = take(%x) axis=one", "expected a whole number, found 'one'"),
        (13, "stage s: %a: float32[1, n] = take(%x) axis", "expected '=', found the end of the line"),
        (13, "head s: %a: float32[1, n] = take(%x) axis=1", "expected no operator on whole values in the head"),
        (3, "input %l: int64[1] = length(n", "expected ')', found the end of the line"),
        (13, "output embedding = %a", "expected hidden or logits, found 'embedding'"),
        (13, "program again block_size=1 key_tile=1", "expected no second program"),
    ],
)
def test_a_bad_line_is_refused_by_number(line: int, wrong: str, message: str) -> None:
    lines = print_program(decoder()).split("\n")
    lines[line - 1] = wrong
    with pytest.raises(CompileError) as caught:
        parse_program("\n".join(lines))
    assert caught.value.where == f"program text, line {line}"
    assert message in caught.value.problem


@pytest.mark.parametrize(("start", "missing"), [("program", "'program ...'"), ("output hidden", "'output hidden")])
def test_a_missing_line_is_named(start: str, missing: str) -> None:
    lines = [line for line in print_program(decoder()).split("\n") if not line.startswith(start)]
    with pytest.raises(CompileError, match="found the end of the text") as caught:
        parse_program("\n".join(lines))
    assert missing in caught.value.problem


def test_an_empty_text_is_no_program() -> None:
    with pytest.raises(CompileError, match=r"line 1: expected a line 'program \.\.\.'"):
        parse_program("")
