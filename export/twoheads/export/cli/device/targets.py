"""``twoheads targets``: the accelerators, what is installed for them, and their environments."""

from enum import StrEnum
from typing import Annotated

import typer

from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import print_facts, print_json, print_table
from twoheads.graphs.errors import InputError

__all__ = ["command"]


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    INSTALL = "install"


def command(
    action: Annotated[
        Action, typer.Argument(metavar="[list|install]", help="List them, or install one.")
    ] = Action.LIST,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The target to install.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the accelerators and whether their compilers are installed, or install one's in an environment of its own.

    Example: twoheads targets
    Install a compiler: twoheads targets install litert
    """
    from twoheads.export.accelerators.environments import install_target, installed_targets

    if action is Action.INSTALL:
        if name is None:
            raise InputError("targets install", "names no target", "say which: twoheads targets lists them")
        compiler = install_target(name)
        facts = {"target": name, "compiler": compiler.name, "version": compiler.version, "python": str(compiler.python)}
        if as_json:
            print_json(facts)
        else:
            print_facts(facts.items())
        return
    if name is not None:
        raise InputError("targets", f"lists all targets, not {name}", f"twoheads targets install {name} installs one")
    found = installed_targets()
    if as_json:
        print_json(
            [
                {
                    "name": one.target.name,
                    "title": one.target.title,
                    "precisions": list(one.target.precisions),
                    "devices": list(one.target.devices),
                    "backend": one.backend,
                    "emulator": one.emulator,
                    "ready": one.ready,
                    "versions": one.versions,
                    "missing": list(one.missing),
                }
                for one in found
            ]
        )
        return
    rows = [
        (
            one.target.name,
            one.target.title,
            ", ".join(one.target.precisions),
            ", ".join(filter(None, (one.backend, one.emulator))) or "none of ours",
            "yes" if one.ready else f"no: {', '.join(one.missing)}",
        )
        for one in found
    ]
    print_table("", ("target", "accelerator", "precision", "backend that runs it", "compiler installed"), rows)
    if not all(one.ready for one in found):
        print_facts([("install one", "twoheads targets install TARGET")])
