"""The base install, in an environment with nothing else: bundles run, and other commands name what to install."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.packaging.bare_environment import make_bare_environment
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.runtime import load

TOKENS = 70


@dataclass(frozen=True)
class Base:
    """The environment's Python, a bundle, tokens for it, and what it makes of them in this environment."""

    python: Path
    bundle: Path
    tokens: Path
    hidden: np.ndarray

    def run(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-I", "-m", "twoheads.export.cli", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def base(installed, tmp_path_factory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    tiny = Tiny(layers=2)
    bundle = write_tiny(folder / "tiny.bundle", tiny)
    tokens = random_tokens(tiny, TOKENS)
    np.save(folder / "tokens.npy", tokens)
    hidden = load(bundle).run(tokens, output="hidden").array
    assert hidden is not None
    return Base(make_bare_environment(folder / "venv", installed), bundle, folder / "tokens.npy", hidden)


def test_nothing_heavy_is_there(base, tmp_path):
    for package in ("torch", "onnx", "transformers", "tokenizers", "psutil"):
        done = subprocess.run([str(base.python), "-I", "-c", f"import {package}"], capture_output=True, check=False)
        assert done.returncode, f"{package} is in the bare environment: this file would prove nothing"


def test_it_runs_a_bundle(base, tmp_path):
    done = base.run("run", base.bundle, "--tokens", base.tokens, "-o", "out.npz", "--output", "hidden", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["hidden"], base.hidden)


@pytest.mark.parametrize(
    "words", [("inspect", "{bundle}"), ("plan", "{bundle}", "--length", "1000"), ("models",), ("--version",)]
)
def test_what_needs_no_model_works(base, tmp_path, words):
    done = base.run(*(word.format(bundle=base.bundle) for word in words), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("compile", ("compile", "{model}", "-o", "x.bundle")),
        ("compile", ("plan", "{model}", "--length", "9")),
        ("compile", ("verify", "{bundle}", "--against", "{model}", "--length", "9")),
        (
            "plot",
            (
                "plan",
                "{bundle}",
                "--length",
                "1000",
                "--device",
                "{model}/device.json",
                "--workers",
                "1..4",
                "--plot",
                "x.png",
            ),
        ),
    ],
)
def test_what_needs_more_names_the_line_to_install(base, tmp_path, extra, words):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    if extra == "plot":
        done = base.run("profile", base.bundle, "-o", model / "device.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = base.run(*(word.format(bundle=base.bundle, model=model) for word in words), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f'pip install "twoheads[{extra}]"' in " ".join(done.stderr.split()), done.stderr
