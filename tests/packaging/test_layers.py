"""Which package and which room may import which: the floors of the house, checked in the source text.

A *room* is a folder of modules. A room may import from the rooms on the floors below its own, in its own package; what
packages may import from each other is the table of packages. The ``__init__.py`` of a folder is a face: it may show
what lies in its package, and is no part of a room. A new room needs a line here, and that is meant: it is the place to
ask where it belongs.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ALLOWED = {
    "graphs": {"graphs"},
    "compiler": {"compiler", "graphs"},
    "runtime": {"runtime", "graphs"},
    "export": {"export", "compiler", "runtime", "graphs"},
}
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "graphs": (
        (".", "program.engines"),
        ("masks",),
        ("program", "serialization"),
        ("variants",),
        ("variants.built", "variants.in_place"),
        ("costs",),
        ("schedule",),
        ("prediction",),
    ),
    "compiler": (
        (
            "ir",
            "frontend",
            "frontend.torch.repeats",
            "frontend.torch.rewrites",
            "frontend.torch.rows",
            "frontend.torch.weights",
        ),
        ("known", "recognition", "frontend.onnx.model", "frontend.torch.operators", "passes"),
        ("frontend.torch.hugging_face.layers",),
        ("frontend.onnx.masks", "frontend.onnx.passes", "frontend.torch.fx", "frontend.torch.hugging_face", "lowering"),
        ("frontend.onnx.lifts",),
        ("frontend.onnx", "frontend.torch"),
        ("original",),
        (".",),
    ),
    "runtime": (
        ("backends.emulators", "bundle.engine_files", "memory", "reports"),
        ("bundle",),
        ("backends", "inputs", "jobs"),
        ("execution", "generation.choosing", "generation.kept", "generation.text"),
        ("generation.steps",),
        ("generation",),
        ("generation.batch",),
        ("stages.attention",),
        ("stages.stock",),
        ("stages",),
        ("device",),
        ("runs",),
        ("cluster", "documents", "measurement"),
        (".",),
    ),
    "export": (
        (".", "accelerators.rewrites", "accelerators.vendors", "cli.shared", "emit", "engines"),
        ("emit.lean", "emit.scans"),
        (
            "emit.fused",
            "precision",
            "bench",
            "cli.batch",
            "cli.generate",
            "cli.inspect",
            "cli.plan",
            "cli.run",
            "one_file.emit",
        ),
        ("bundle", "one_file.steps", "verification"),
        ("accelerators", "one_file", "verification.generation", "verification.streamed"),
        ("debug", "pack"),
        ("cli.commands", "cli.device", "cli.verify"),
        ("cli",),
    ),
}
"""The rooms of each package, ground floor first; ``.`` is the package's own folder."""

MOST_MODULES = 12
"""In one room: what a reader can hold in mind."""

LISTS = {"export.accelerators.vendors", "runtime.backends.emulators"}
"""Rooms that are lists of one kind of thing, which may be long."""

HEAVY = {"accelerate", "gguf", "onnx", "onnx_ir", "onnxscript", "rich", "safetensors", "torch", "transformers", "typer"}


def _imports(folder: str) -> Iterator[tuple[Path, int, str]]:
    """Every module imported anywhere in ``folder``, also inside functions: file, line, dotted name."""
    for path in sorted((ROOT / folder / "twoheads").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                assert node.module is not None
                # `from twoheads import runtime` imports the package twoheads.runtime.
                names = (
                    [f"twoheads.{alias.name}" for alias in node.names] if node.module == "twoheads" else [node.module]
                )
                yield from ((path, node.lineno, name) for name in names)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_packages_import_only_what_they_may(folder):
    seen = 0
    for path, line, name in _imports(folder):
        parts = name.split(".")
        if parts[0] == "twoheads":
            seen += 1
            assert parts[1] in ALLOWED[folder], f"{path}:{line}: {folder} must not import {name}"
    assert seen, f"{folder} imports nothing of ours, not even itself: is the path right?"


@pytest.mark.parametrize("folder", ["graphs", "runtime"])
def test_what_runs_on_the_edge_needs_no_toolchain(folder):
    for path, line, name in _imports(folder):
        if path.match("backends/emulators/run_*.py"):  # what runs in a vendor's environment, with what the vendor needs
            continue
        assert name.split(".")[0] not in HEAVY, f"{path}:{line}: {folder} must not import {name}"


def test_nobody_imports_the_tests_or_tools():
    for folder in ALLOWED:
        for path, line, name in _imports(folder):
            assert name.split(".")[0] not in ("tests", "tools"), f"{path}:{line}: imports {name}"


def _modules(folder: str) -> dict[str, Path]:
    """The modules of one package by dotted name; a face has its folder's name."""
    base = ROOT / folder
    found = {}
    for path in sorted((base / "twoheads").rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _room(folder: str, path: Path) -> str:
    parts = path.relative_to(ROOT / folder / "twoheads" / folder).parts[:-1]
    return ".".join(parts) or "."


@functools.cache
def _arrows(folder: str) -> tuple[tuple[Path, int, str], ...]:
    """Imports inside of one package: file, line, imported module; the names of a face count as the face."""
    modules = _modules(folder)
    arrows = []
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if name in modules else str(node.module) for name in named]
            else:
                continue
            arrows += [(path, node.lineno, target) for target in targets if target in modules]
    return tuple(arrows)


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_rooms_import_only_from_the_floors_below(folder):
    modules = _modules(folder)
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS[folder]) for room in rooms}
    rooms = {_room(folder, path) for path in modules.values() if path.name != "__init__.py"}
    assert rooms == set(floor_of), "a room has no floor, or a floor has no room"
    wrong = []
    for path, line, target in _arrows(folder):
        if path.name == "__init__.py" or modules[target].name == "__init__.py":
            continue
        here, there = _room(folder, path), _room(folder, modules[target])
        if here != there and floor_of[there] >= floor_of[here]:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} must not import {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_no_module_imports_itself_by_way_of_others(folder):
    modules = _modules(folder)
    names = {path: name for name, path in modules.items()}
    after: dict[str, set[str]] = {name: set() for name in modules}
    for path, _, target in _arrows(folder):
        if path.name != "__init__.py":
            after[names[path]].add(target)
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_rooms_are_small_and_say_what_they_are(folder):
    modules = _modules(folder)
    counted = Counter(_room(folder, path) for path in modules.values() if path.name != "__init__.py")
    crowded = {room: count for room, count in counted.items() if count > MOST_MODULES}
    assert {f"{folder}.{room}" for room in crowded} <= LISTS, crowded
    for room in counted:
        face = modules.get(f"twoheads.{folder}" + ("" if room == "." else f".{room}"))
        assert face is not None, f"{folder}.{room} has no __init__.py"
        assert ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))), (
            f"{face} does not say what the room holds"
        )


SHARED = {
    "a kind of stage": "attention experts fused head packed scan sequence tokenwise",
    "a lowering of attention": "oracle stock_attention tile_attention",
    "a step of a few rows, of one sequence or of many": "batch batch_in_place in_place step",
    "a lowering": "one_block",
    "a command, and what it does": "bench build canary chat cluster export generation job layers lint pack status",
    "texts, each by itself": "documents",
    "what a command is asked and prints": "command options progress report",
    "a front door's part, in each": "attach_attention capture capture_whole sequence_node view",
    "what carries out a run, and how": "executor outputs run values",
    "how long a sequence is": "axes lengths",
    "sampled attention": "sampling",
    "arrays by name": "arrays weights",
    "nodes of an ONNX file": "graph",
    "a bundle beside its original": "verifier",
}
"""Names of modules that several rooms have: each means one thing, said here, in all of them."""


def test_a_name_means_one_thing_in_all_rooms() -> None:
    names = Counter(
        path.stem
        for folder in ALLOWED
        for path in (ROOT / folder / "twoheads").rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    )
    said = [name for names_of_one in SHARED.values() for name in names_of_one.split()]
    assert sorted(name for name, count in names.items() if count > 1) == sorted(said)


MOST_LINES = 60
"""Of a function, its signature and docstring included."""

MOST_PARAMETERS = 12
"""Of a command's function; a command with more options takes frozen objects of them."""


def _functions(folder: str) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted((ROOT / folder / "twoheads").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_functions_are_short(folder):
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, node in _functions(folder)
    }
    assert len(lengths) > 100, "where are the functions?"
    assert not {where: lines for where, lines in lengths.items() if lines > MOST_LINES}


def test_commands_take_their_options_as_objects():
    counts = {}
    for path, node in _functions("export"):
        if "cli" in path.parts and node.name == "command":
            given = node.args
            counts[str(path.relative_to(ROOT))] = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
    assert len(counts) >= 20, "a command's function has another name"
    assert not {where: count for where, count in counts.items() if count > MOST_PARAMETERS}
