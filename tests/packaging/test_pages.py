"""Every command of README and the guides runs, on a tiny model, where only what the page says is installed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.export.conftest import bundle
from tests.packaging.bare_environment import link_packages, make_bare_environment, packages_of
from tests.packaging.page_commands import EVERYWHERE, ROOT, Page, pages

PAGES = pages()

ELSEWHERE = {
    ("--cluster", "auto"): "needs a cluster that runs; test_ray_workers.py starts one",
    ("build", "openvino"): "needs the environment of a vendor's compiler; test_build.py has one",
    ("build", "litert"): "the same",
    ("pack", "litert"): "packs what that built",
    ("generate", "openvino-ir"): "generates with what that built; test_built_engines.py does",
    ("targets", "install"): "fetches a vendor's compiler",
}
"""Options of commands that can't run here, and why; their words are read all the same."""

__all__ = ["bundle"]

FEWER = {("--workers", "1000000"): "100000", ("verify", "4096"): "600", ("verify", "FILE"): "book.txt"}
"""Numbers of tokens in commands with a word that take many seconds: fewer prove as much of what a page says."""

SHORTER = {"--sign": "--no-generation"}
"""Options for commands with a word: what they leave out, no command after them reads."""

SAID = {("long-inputs.md", "resume"): "is finished"}
"""Commands that have nothing to do here, where what comes before them was not interrupted: what they say."""

TEXT = "the cat sat on a mat and saw the red dog run to the house by the sea\n" * 40


def substituted(words: tuple[str, ...], model: Path, folder: Path) -> list[str]:
    """The words with names of files that are there."""
    names = {
        "$MODEL": str(model),
        "MODEL": str(model),
        "model.gguf": str(model),
        "FILE": "long.txt",
        "FILE.npz": "arrays.npz",
        "tools/data/founding_documents.txt": "book.txt",
    }
    names |= {more: fewer for (word, more), fewer in FEWER.items() if word in words}
    made = [names.get(word, word).replace("/scratch", str(folder)) for word in words]
    return [*made, *(more for word, more in SHORTER.items() if word in words)]


def make_folder(folder: Path, bundle: Path, page: Page) -> None:
    """A working directory with what a page's commands read."""
    folder.mkdir()
    (folder / "book.txt").write_text(TEXT, encoding="utf-8")
    (folder / "long.txt").write_text(TEXT * 5, encoding="utf-8")
    (folder / "questions.txt").write_text(TEXT, encoding="utf-8")
    (folder / "texts").mkdir()
    for number in range(3):
        (folder / "texts" / f"{number}.txt").write_text(TEXT[: 50 + 500 * number], encoding="utf-8")
    np.savez(folder / "arrays.npz", input_ids=np.arange(40)[None] % 16)
    for line in page.other:
        if line.startswith("openssl "):
            subprocess.run(shlex.split(line), cwd=folder, check=True, capture_output=True)
        elif line.startswith("printf "):  # a page's own input, written to a file
            subprocess.run(line, cwd=folder, check=True, shell=True)
    if not any(words[0] == "compile" for words in page.commands):
        (folder / "model.bundle").symlink_to(bundle)


@pytest.fixture(scope="module")
def outcomes(
    installed: Path, tiny_llama: Path, bundle: Path, tmp_path_factory
) -> dict[tuple[str, int], tuple[int, str]]:
    """Exit code and output of every command, by page and number; pages that say to install the same share a process."""
    members: dict[tuple[frozenset[str], frozenset[str]], list[Page]] = defaultdict(list)
    for page in PAGES:
        members[page.extras, page.packages].append(page)
    root = tmp_path_factory.mktemp("pages")
    python = make_bare_environment(root / "venv", installed, EVERYWHERE)
    there = packages_of(installed, EVERYWHERE)
    asked: list[dict[tuple[str, int], tuple[str, list[str]]]] = []
    groups: list[tuple[str, list[tuple[str, list[str]]]]] = []
    for number, ((extras, packages), pages_of_group) in enumerate(members.items()):
        more = root / f"more{number}"
        more.mkdir()
        link_packages(packages_of(installed, extras, packages) - there, more)
        asked.append(_asked(pages_of_group, root / f"pages{number}", bundle, tiny_llama))
        groups.append((str(more), list(asked[-1].values())))
    (root / "groups.json").write_text(json.dumps(groups), encoding="utf-8")
    script = Path(__file__).with_name("run_commands.py")
    command = [str(python), "-I", str(script), str(root / "groups.json"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, int], tuple[int, str]] = {}
    for number, places in enumerate(asked):
        found |= dict(zip(places, map(tuple, json.loads((root / f"{number}.json").read_text())), strict=True))
    return found


def _asked(
    members: Sequence[Page], root: Path, bundle: Path, model: Path
) -> dict[tuple[str, int], tuple[str, list[str]]]:
    """Where the commands of some pages run, and their words, by page and number."""
    root.mkdir()
    asked: dict[tuple[str, int], tuple[str, list[str]]] = {}
    for page in members:
        folder = root / Path(page.name).stem
        make_folder(folder, bundle, page)
        for number, words in enumerate(page.commands):
            if not _elsewhere(words):
                asked[page.name, number] = (str(folder), substituted(words, model, folder))
    return asked


def _elsewhere(words: tuple[str, ...]) -> bool:
    return any(set(options) <= set(words) for options in ELSEWHERE)


@pytest.mark.parametrize(
    ("page", "number"),
    [pytest.param(page, at, id=f"{page.name}:{at}") for page in PAGES for at in range(len(page.commands))],
)
def test_a_command_runs_as_its_page_says(page: Page, number: int, outcomes) -> None:
    words = page.commands[number]
    if _elsewhere(words):
        read_words(words)
        return
    code, printed = outcomes[page.name, number]
    if (said := SAID.get((Path(page.name).name, words[0]))) is not None:
        assert said in printed
        return
    assert code == 0, f"twoheads {' '.join(words)}\n{printed}"


def read_words(words: tuple[str, ...]) -> None:
    """Fails where the command has no such options."""
    import typer

    from twoheads.export.cli.app import app

    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], list(words[1:]))


def test_other_lines_name_what_there_is() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for line in page.other:
            program, _, rest = line.partition(" ")
            if program == "make":
                assert rest.split()[0] in targets, line
            elif program == "python":
                module = rest.split()[1]
                assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), line
            else:
                assert program in ("pip", "openssl", "printf") or program.startswith("MODEL="), line


def test_every_page_has_commands() -> None:
    assert sum(len(page.commands) for page in PAGES) > 20
    assert len(PAGES) > 8
