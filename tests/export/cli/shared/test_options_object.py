"""Options as one frozen object: Typer sees each field, the command gets the object, conflicts are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from twoheads.export.cli.shared import conflicts
from twoheads.export.cli.shared.conflicts import CONFLICTS, NEEDS, Conflict, Need, check_conflicts
from twoheads.export.cli.shared.options_object import given_flags, takes_options
from twoheads.graphs.errors import InputError

Name = Annotated[str, typer.Option("--name", "-n", help="A name.")]


@dataclass(frozen=True, slots=True)
class Inner:
    size: Annotated[int, typer.Option("--size", min=1)] = 3
    loud: Annotated[bool, typer.Option("--loud")] = False


@dataclass(frozen=True, slots=True)
class Outer:
    name: Name
    words: Annotated[list[str] | None, typer.Option("--word")] = None
    inner: Inner = field(default_factory=Inner)


def run(*words: str) -> tuple[Path, Outer]:
    got: list[tuple[Path, Outer]] = []
    app = typer.Typer()

    @app.command()
    @takes_options
    def command(path: Annotated[Path, typer.Argument(metavar="PATH")], asked: Outer) -> None:
        """Do it."""
        got.append((path, asked))

    result = CliRunner().invoke(app, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return got[0]


def test_the_command_gets_the_object() -> None:
    assert run("p", "--name", "x") == (Path("p"), Outer("x"))
    asked = run("p", "-n", "x", "--word", "a", "--word", "b", "--size", "5", "--loud")[1]
    assert asked == Outer("x", ["a", "b"], Inner(5, loud=True))


def test_what_typer_checks_it_still_checks() -> None:
    for words, said in (
        (("p",), "name"),
        (("p", "-n", "x", "--size", "0"), "equal to 1"),
        (("p", "-n", "x", "--nothing"), "nothing"),
    ):
        with pytest.raises(Exception, match=said):
            run(*words)


def test_given_are_the_options_that_are_not_the_default() -> None:
    assert set(given_flags(Outer("x"))) == {"--name"}
    assert set(given_flags(Outer("x", ["a"], Inner(loud=True)))) == {"--name", "--word", "--loud"}


def test_options_that_exclude_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "CONFLICTS", (Conflict("--loud", "--size", "it is so"),))
    monkeypatch.setattr(conflicts, "NEEDS", (Need("--word", "--loud", "it is shouted"), Need("--name", "--far", "no")))
    assert run("p", "-n", "x", "--loud")[1].inner.loud
    with pytest.raises(InputError, match="--loud: does not go together with --size: it is so\n  fix: leave out --loud"):
        run("p", "-n", "x", "--loud", "--size", "5")
    with pytest.raises(InputError, match="--word: is given without --loud: it is shouted\n  fix: add --loud"):
        run("p", "-n", "x", "--word", "a")


@pytest.mark.parametrize("row", CONFLICTS)
def test_every_conflict_is_refused(row: Conflict) -> None:
    with pytest.raises(InputError):
        check_conflicts({row.option, row.other}, {row.option, row.other})


@pytest.mark.parametrize("row", NEEDS)
def test_every_need_is_refused_where_the_command_has_it(row: Need) -> None:
    with pytest.raises(InputError):
        check_conflicts({row.option}, {row.option, row.needed})
    check_conflicts({row.option}, {row.option})


def test_every_row_is_of_some_command() -> None:
    """A row with a flag that no command has both of would never refuse anything."""

    from twoheads.export.cli.app import app

    group: Any = typer.main.get_command(app)
    known = [{flag for parameter in command.params for flag in parameter.opts} for command in group.commands.values()]
    for row in (*CONFLICTS, *NEEDS):
        assert any({row[0], row[1]} <= flags for flags in known), row
