"""What the tests of the command line share: a runner, and a tiny model's bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from twoheads.export.cli import main

WORDS = "the cat sat on a mat and saw the red dog run to the house by the sea "


class Ran:
    """One command line's outcome."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self) -> str:
        """The message of a user's error: one, on stderr, exit code 1, and no traceback."""
        assert self.code == 1, self.err
        assert self.out == ""
        assert self.err.count("error: ") == 1
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bundle(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    assert main(["compile", str(tiny_llama), "-o", str(path), "--block-size", "16"]) == 0
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text(WORDS * 2, encoding="utf-8")  # 36 words
    return path


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
