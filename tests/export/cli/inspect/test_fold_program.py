"""A program's text with equal layers once: what is left out is exactly what is alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.cli.inspect.fold_program import fold_program
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import AttentionStage, Program


def program_of(masks: tuple[str, ...]) -> Program:
    return make_program(Tiny(layers=len(masks), masks=masks))


def stages(text: str) -> int:
    return text.count("\nstage ")


def test_equal_layers_are_shown_once_with_their_number() -> None:
    text = print_program(program_of(("causal",) * 9))
    folded = fold_program(text)
    assert stages(folded) < stages(text) / 2
    (note,) = (line for line in folded.splitlines() if line.startswith("#"))
    times = int(note.split("repeated ")[1].split()[0])
    period = int(note.split("the last ")[1].split()[0])
    assert stages(text) == stages(folded) + times * period
    assert set(folded.splitlines()) - {note} <= set(text.splitlines())


def test_layers_with_other_masks_fold_by_their_pattern() -> None:
    text = print_program(program_of(("causal", "causal & window(20, 0)") * 4))
    folded = fold_program(text)
    assert "# the last 4 stages are repeated" in folded
    assert folded.count("window(20, 0)") <= 2


def test_one_layer_that_differs_is_shown() -> None:
    program = program_of(("causal",) * 7)
    name = program.attentions[4].name
    body = tuple(
        replace(stage, mask=parse_mask("causal & window(20, 0)"))
        if isinstance(stage, AttentionStage) and stage.name == name
        else stage
        for stage in program.body
    )
    folded = fold_program(print_program(replace(program, body=body)))
    assert f"stage {name}:" in folded
    assert folded.count("\n#") == 2


def test_stages_that_read_other_values_are_not_alike() -> None:
    lines = [
        "program p block_size=16 key_tile=16",
        *(f"stage s_{n}: %s_{n}.o: float32[1, n, 4] = @e(%{f's_{n - 1}.o' if n else 'x'})" for n in range(6)),
    ]
    assert fold_program("\n".join(lines)).count("\nstage ") == 2
    lines[5] = lines[5].replace("%s_3.o", "%s_1.o")
    assert fold_program("\n".join(lines)).count("\nstage ") == 4


def test_a_value_that_all_layers_read_does_not_keep_them_apart() -> None:
    lines = [
        "program p block_size=16 key_tile=16",
        "stage first: %first.o: float32[1, n, 4], %first.sines: float32[1, n, 4] = @f(%x)",
        *(
            f"stage s_{n}: %s_{n}.o: float32[1, n, 4] = @e(%{f's_{n - 1}.o' if n else 'first.o'}, %first.sines)"
            for n in range(9)
        ),
    ]
    assert fold_program("\n".join(lines)).count("\nstage ") == 2
    lines[6] = lines[6].replace("%first.sines", "%x")
    assert fold_program("\n".join(lines)).count("\nstage ") == 4


@pytest.mark.parametrize("flag", [(), ("--stages",)])
def test_a_flag_shows_all(cli, tmp_path, flag) -> None:
    tiny = Tiny(layers=6, masks=("causal",) * 6)
    bundle = write_tiny(tmp_path / "b", tiny)
    shown = cli("inspect", bundle, "--program", *flag).out
    assert (stages(shown) == stages(print_program(make_program(tiny)))) == bool(flag)
    assert ("repeated" in shown) != bool(flag)
